"""What a dataset's files do not say, in sentences with what would say it."""

from __future__ import annotations

import re

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics

_NUMBERED = re.compile(r"(action|proprio)_\d+")


def unknowns(reader: EpisodeReader, statistics: DatasetStatistics, chunk: int | None) -> list[str]:
    """Everything that a person should say, or look at, before trusting a run on this data."""
    parts = list(reader.parts.values()) if isinstance(reader, MixtureReader) else [reader]
    notes = _meaning(reader.description)
    for part in parts:
        where = f"{part.description.name}: " if len(parts) > 1 else ""
        notes += [where + note for note in _of_one(part, chunk)]
    for name, part_statistics in statistics.each().items():
        for key, feature in part_statistics.features.items():
            if feature.constant:
                where = f"{name}: " if name else ""
                notes.append(f"{where}{key} never changes in {', '.join(feature.constant)}: is it recorded?")
    return notes


def _meaning(about: DatasetDescription) -> list[str]:
    notes = []
    if about.action_kind == "unknown":
        notes.append("whether actions are joints or poses: data.action_kind=joint or end_effector")
    if about.action_mode == "unknown":
        notes.append("whether actions are targets or changes: data.action_mode=absolute or delta")
    if about.gripper in ("", "unknown"):
        notes.append("which action is the gripper, and whether 1 is open or closed")
    elif not about.gripper_dims and not any("gripper" in name.lower() for name in about.action_names):
        notes.append(f"which action is the gripper, of which is known: {about.gripper}")
    for part, names, units in (
        ("action", about.action_names, about.action_units),
        ("proprio", about.proprio_names, about.proprio_units),
    ):
        if any(_NUMBERED.fullmatch(name) for name in names):
            notes.append(f"what the dimensions of {part} are called: they are numbered")
        if names and all(unit in ("", "unknown") for unit in units):
            notes.append(f"the units of {part}")
    if not about.fps:
        notes.append("one rate for all datasets of the mix: a chunk spans other times in each")
    return notes


def _of_one(reader: EpisodeReader, chunk: int | None) -> list[str]:
    lengths = np.asarray(reader.lengths)
    notes = [f"{what} is assumed: {why}" for what, why in reader.assumed.items()]
    empty = sum(not reader.instruction(episode).strip() for episode in range(len(lengths)))
    if empty == len(lengths):
        notes.append("what the robot was told: no episode has an instruction (data.instruction=...)")
    elif empty:
        notes.append(f"what the robot was told in {empty} of {len(lengths)} episodes (data.instruction=... for those)")
    short = int((lengths < (chunk or 0)).sum())
    if short:
        notes.append(f"{short} of {len(lengths)} episodes are shorter than a chunk of {chunk} steps: padded and masked")
    if len(lengths) < 2:
        notes.append("a single episode: nothing is held out")
    return notes
