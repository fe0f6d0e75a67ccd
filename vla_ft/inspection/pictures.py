"""The arrays of an inspection's pictures: frames of a few episodes over time, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.loading import evenly_spaced
from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.data.statistics import FEATURES
from vla_ft.inspection.overview import InspectConfig, Inspection, Overview

Labelled = tuple[str, np.ndarray, np.ndarray]
"""A title and two arrays."""


def contact_sheets(inspection: Inspection, config: InspectConfig) -> Iterator[tuple[Path, str, list[Labelled]]]:
    """(file, title, strips) of each dataset with cameras. A strip is (title, frames uint8 [n, H, W, 3], seconds [n]).

    Raises UserError for a frame that cannot be read.
    """
    for overview in inspection.overviews:
        reader = overview.reader
        if not reader.description.cameras:
            continue
        strips = []
        for episode in _chosen(reader, config):
            length = int(reader.lengths[episode])
            steps = np.unique(np.linspace(0, length - 1, config.frames).round().astype(np.int64))
            for camera in reader.description.cameras:
                frames = reader.read(episode, steps, (IMAGE_PREFIX + camera,))[IMAGE_PREFIX + camera]
                strips.append((f"episode {episode}\n{camera}", frames, _seconds(reader, steps)))
        yield _file(inspection, overview, "contact_sheet"), _title(overview, "frames"), strips


def plots(
    inspection: Inspection, config: InspectConfig
) -> Iterator[tuple[Path, str, tuple[str, ...], tuple[str, ...], list[Labelled], tuple[np.ndarray, np.ndarray]]]:
    """(file, title, names, units, tracks, (q01, q99)) of each feature of each dataset.

    A track is (title, seconds [steps], values [steps, D]) of an episode.
    """
    for overview in inspection.overviews:
        reader, about = overview.reader, overview.reader.description
        units = {"action": about.action_units, "proprio": about.proprio_units}
        for feature in FEATURES:
            found = overview.statistics[feature]
            if not found.names:
                continue
            tracks = []
            for episode in _chosen(reader, config):
                steps = np.arange(int(reader.lengths[episode]))
                values = reader.read(episode, steps, (feature,))[feature]
                tracks.append((f"episode {episode}", _seconds(reader, steps), values))
            title = _title(overview, f"{feature} (grey: 1 % to 99 % of all steps)")
            path = _file(inspection, overview, feature)
            yield path, title, found.names, units[feature], tracks, (found.q01, found.q99)


def _chosen(reader: EpisodeReader, config: InspectConfig) -> list[int]:
    filled = np.flatnonzero(reader.lengths)
    return [int(filled[place]) for place in evenly_spaced(len(filled), config.episodes)]


def _seconds(reader: EpisodeReader, steps: np.ndarray) -> np.ndarray:
    return steps / reader.description.fps if reader.description.fps else steps.astype(np.float64)


def _title(overview: Overview, what: str) -> str:
    about, lengths = overview.reader.description, overview.reader.lengths
    return f"{about.name}: {what} · {len(lengths):,} episodes, {int(lengths.sum()):,} steps, {about.fps:g} Hz"


def _file(inspection: Inspection, overview: Overview, what: str) -> Path:
    several = len(inspection.overviews) > 1
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in overview.name)
    return inspection.folder / (f"{safe}_{what}.png" if several else f"{what}.png")
