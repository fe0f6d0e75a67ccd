"""What a check finds, and the report of all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["error", "warning", "left out"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong (``error``), or that a person should look at (``warning``).

    ``left out``: of an episode that a run does not read, by ``data.on_damage=skip``, ``shortest`` or ``skip_still``.
    """

    level: Level
    kind: str
    """Groups findings: damaged, not finite, width, time, image, black, frozen, jump, constant, instruction, short,
    files (remarks about the files as a whole), length, too short, never moves, nothing left."""
    message: str
    episode: int | None = None
    """Number of the episode in the whole dataset; None for what concerns all of it."""
    name: str = ""
    """How a person finds that episode."""
    step: int | None = None
    field: str = ""
    """``action <dimension>``, ``proprio <dimension>``, ``image_<camera>``..."""

    def __str__(self) -> str:
        step = "" if self.step is None else f"step {self.step}"
        where = ", ".join(part for part in (self.name, step, self.field) if part)
        return f"{where}: {self.message}" if where else self.message


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Everything that was looked at and found."""

    dataset: str
    episodes: int
    steps: int
    frames: int
    """Frames of all cameras that were decoded."""
    findings: tuple[Finding, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Steps that ``data.skip_still`` skips at the start of an episode, by its name."""
    read: int = 0
    """Steps that a run reads, but for damaged episodes."""
    counts: tuple[str, ...] = ()
    """Lines that the format's own documentation promises (``EpisodeReader.counts``)."""

    def of(self, level: Level) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def left_out(self) -> list[int]:
        """Numbers of the episodes that a run does not read."""
        return sorted({finding.episode for finding in self.of("left out") if finding.episode is not None})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        counts = {"errors": len(self.of("error")), "warnings": len(self.of("warning")), "left_out": self.left_out}
        about = {name: getattr(self, name) for name in ("dataset", "episodes", "steps", "frames", "read")}
        about["skipped"] = dict(self.skipped)
        return about | counts | {"findings": [dataclasses.asdict(finding) for finding in self.findings]}
