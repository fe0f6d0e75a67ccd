"""``vla-ft data check``: the words it takes, and where its findings go."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from vla_ft.config import DataConfig
from vla_ft.data.checking.dataset import CheckOptions, check_dataset
from vla_ft.data.checking.findings import CheckReport
from vla_ft.data.checking.frames import ImageMode
from vla_ft.data.formats.writing import write_json
from vla_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What ``vla-ft data check`` takes; ``data`` as in a recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: DataConfig
    images: ImageMode = "sample"
    """Which frames are decoded: ``all``, a few of each episode and camera (``sample``), or ``none``."""
    on_damage: Literal["error", "skip"] = "error"
    """Judge as a run with that ``data.on_damage``: ``skip`` counts damaged episodes and does not call them wrong."""
    chunk: Annotated[int, Field(gt=0)] | None = None
    """Steps of an action chunk: shorter episodes are told. null means one second."""
    workers: Annotated[int, Field(ge=0)] = min(4, os.cpu_count() or 1)
    output: str | None = None
    """Where to write all findings as JSON."""


def check(config: CheckConfig) -> CheckReport:
    """Check a dataset. Raises UserError for data that cannot be opened at all, and an ``output`` that cannot be."""
    output = Path(config.output) if config.output else None
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")
    if output is not None and output.is_dir():
        raise UserError(f"output={output} is a folder. Name a file for the findings, such as {output / 'check.json'}.")
    # All damage is looked for, not the first, and in all steps: what is left out and skipped is told.
    data = dataclasses.replace(config.data, on_damage="skip", skip_still=None, shortest=None)
    options = CheckOptions(
        images=config.images,
        chunk=config.chunk,
        skip=config.on_damage == "skip",
        skip_still=config.data.skip_still,
        shortest=config.data.shortest,
        workers=config.workers,
    )
    return check_dataset(data.open(data.path), options)


def write_report(report: CheckReport, output: str) -> None:
    """All findings as JSON; a reader sees the old file or the whole new one. Raises UserError."""
    try:
        write_json(Path(output), report.to_json())
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error}. What was found is printed above.") from error
