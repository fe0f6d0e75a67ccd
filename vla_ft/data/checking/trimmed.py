"""What a run with ``data.skip_still`` and ``data.shortest`` does not read, as training would find it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vla_ft.data.checking.episode import EpisodeFacts
from vla_ft.data.checking.findings import Finding
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.trimming import trimmed_reader

SHORT, STILL = "too short", "never moves"
"""Kinds of findings: why an episode is left out."""


@dataclasses.dataclass(frozen=True)
class Trimmed:
    """Of one dataset: what is left out, told, and what is skipped of the episodes that stay."""

    findings: list[Finding]
    skipped: dict[str, int]
    """Steps that are skipped at an episode's start, by its name; only episodes that lose some."""
    steps: int
    """Steps that a run reads."""


def trim(
    reader: EpisodeReader, facts: Sequence[EpisodeFacts], first: int, still: float | None, shortest: int | None
) -> Trimmed:
    """Judge the episodes of ``reader``, the first of which is number ``first`` of the check, by both options.

    ``facts`` of an episode that is left out are changed: what is wrong with it is no error, and the dataset is not
    judged by it.
    """
    trimmed = trimmed_reader(reader, still, shortest)
    starts = np.asarray(getattr(trimmed, "starts", np.zeros(len(reader.lengths), dtype=np.int64)))
    found: list[Finding] = []
    for episode, why in sorted(trimmed.left_out.items()):
        one, name = facts[episode], reader.name_of(episode)
        one.findings = [dataclasses.replace(finding, level="left out") for finding in one.findings]
        one.movements, one.damaged, one.instructed = {}, True, True
        kind = STILL if "never moves" in why else SHORT
        message = why.removeprefix(name).strip()
        found.append(Finding(level="left out", kind=kind, episode=first + episode, name=name, message=message))
    if trimmed.left_out and len(trimmed.left_out) == len(reader.lengths):
        message = f"every episode is left out ({next(iter(trimmed.left_out.values()))}): a run would have no data"
        found.append(Finding(level="error", kind="nothing left", message=message))
    kept = [episode for episode in range(len(reader.lengths)) if episode not in trimmed.left_out]
    skipped = {reader.name_of(episode): int(starts[episode]) for episode in kept if starts[episode]}
    return Trimmed(found, skipped, int(np.asarray(trimmed.lengths)[kept].sum()) if kept else 0)
