"""``vla-ft data inspect``: what a dataset holds, as tables and as arrays to draw."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

from vla_ft.config import DataConfig
from vla_ft.data.damaged import Damaged, find_damaged, without_damaged
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.mixture import MixtureReader, mixture_statistics
from vla_ft.data.statistics import FEATURES, DatasetStatistics, cached_statistics
from vla_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What ``vla-ft data inspect`` takes; ``data`` as in a recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: DataConfig
    episodes: Annotated[int, Field(gt=0)] = 3
    """Episodes that are drawn, evenly spaced over each dataset."""
    frames: Annotated[int, Field(gt=0)] = 8
    """Frames of an episode and camera in the contact sheet."""
    output: str | None = None
    """Folder for pictures and statistics; null means ``inspect/<name>`` in the folder of runs."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """One dataset. ``instructions`` counts episodes by what they were told; empty text for none."""

    reader: EpisodeReader
    instructions: Counter[str]
    statistics: DatasetStatistics

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.reader.description.name


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that is shown: one overview a dataset of the mixture, and where files go."""

    overviews: tuple[Overview, ...]
    damaged: Damaged
    folder: Path


def inspect(config: InspectConfig) -> Inspection:
    """Open the data without its damaged episodes and compute statistics of all others. Raises UserError."""
    data = dataclasses.replace(config.data, on_damage="skip")
    whole = data.open(data.path)
    damaged = find_damaged(whole)
    reader = without_damaged(whole, damaged)
    folder = _folder(config, reader)
    overviews = tuple(
        Overview(reader=part, instructions=_instructions(part), statistics=statistics)
        for part, statistics in _with_statistics(reader, folder)
    )
    return Inspection(overviews=overviews, damaged=damaged, folder=folder)


def _instructions(reader: EpisodeReader) -> Counter[str]:
    return Counter(reader.instruction(episode).strip() for episode in range(len(reader.lengths)))


def _with_statistics(reader: EpisodeReader, folder: Path) -> list[tuple[EpisodeReader, DatasetStatistics]]:
    everything = np.arange(len(reader.lengths))
    if not isinstance(reader, MixtureReader):
        return [(reader, cached_statistics(reader, everything, folder / "statistics.json"))]
    statistics = mixture_statistics(reader, everything, folder)
    return [(part, statistics.of(name)) for name, part in reader.parts.items()]


def _folder(config: InspectConfig, reader: EpisodeReader) -> Path:
    runs = Path(os.environ.get("VLA_FT_RUNS", "runs"))
    name = Path(config.data.path).resolve().name if isinstance(reader, MixtureReader) else reader.description.name
    folder = Path(config.output) if config.output else runs / "inspect" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make {folder}: {error.strerror}. Name a folder of yours with output=DIR.") from error
    return folder


def feature_rows(overview: Overview) -> Iterator[tuple[Any, ...]]:
    """(feature, dimension, name, unit, min, mean, max, std, q01, q99, remark) of every dimension."""
    about = overview.reader.description
    units = {"action": about.action_units, "proprio": about.proprio_units}
    for key in FEATURES:
        found = overview.statistics[key]
        for d, name in enumerate(found.names):
            remark = "constant" if name in found.constant else ""
            gripper = "gripper" if key == "action" and d in about.gripper_dims else ""
            numbers = tuple(float(getattr(found, what)[d]) for what in ("min", "mean", "max", "std", "q01", "q99"))
            yield key, d, name, units[key][d], *numbers, ", ".join(filter(None, (remark, gripper)))
