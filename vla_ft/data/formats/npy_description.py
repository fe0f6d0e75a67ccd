"""What the numbers of an npy set mean: from ``vla_ft.json`` where we wrote it, else what the ACT guide says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.descriptions import load_described
from vla_ft.data.formats.npy_files import Rows
from vla_ft.data.formats.npy_layout import ACTIONS, STATE, Contents
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError, nearest

ABOUT = "vla_ft.json"
LAYOUT = "vla_ft npy 1"
DEFAULT_FPS = 50.0
_SIDES = ("left", "right")
_ARM = (*(f"joint_{i}" for i in range(6)), "gripper")
_ARM_STATE = (*_ARM[:-1], "finger_0", "finger_1")


@dataclass(frozen=True)
class About:
    """What a set says about itself. ``instructions``: one an episode. ``assumed``: see ``EpisodeReader.assumed``."""

    description: DatasetDescription
    instructions: Sequence[str]
    assumed: Mapping[str, str]


def is_described(folder: Path) -> bool:
    """Whether a description of ours lies in the folder."""
    return (folder / ABOUT).is_file()


def describe(folder: Path, contents: Contents, cameras: Sequence[str] | None) -> About:
    """The set with ``cameras`` (all by default). Raises UserError when its description does not fit its arrays."""
    about = _from_file(folder, contents) if is_described(folder) else _from_guide(folder, contents)
    sizes = about.description.cameras
    for camera in cameras or ():
        if camera not in sizes:
            raise UserError(
                f"Invalid observation format: {folder} has no image_{camera}.{nearest(camera, sizes)} Its cameras: "
                f"{', '.join(sizes) or 'none'}."
            )
    chosen = {camera: sizes[camera] for camera in (sizes if cameras is None else dict.fromkeys(cameras))}
    return dataclasses.replace(about, description=dataclasses.replace(about.description, cameras=chosen))


def camera_sizes(columns: Mapping[str, Rows]) -> dict[str, tuple[int, int]]:
    """Camera -> (height, width), from the shapes of the pictures."""
    return {
        name.removeprefix(IMAGE_PREFIX): (rows.shape[1], rows.shape[2])
        for name, rows in columns.items()
        if name.startswith(IMAGE_PREFIX)
    }


def _from_guide(folder: Path, contents: Contents) -> About:
    action, state = contents.action.shape[1], contents.columns[STATE].shape[1]
    names, two_arms = _names("action", action, {14: _ARM}), action == 2 * len(_ARM)
    proprio = _names("state", state, {14: _ARM, 16: _ARM_STATE})
    assumed = {"fps": f"{DEFAULT_FPS:g}, ALOHA's rate: the files hold none"}
    if two_arms:
        assumed["action_names"] = "the guide's two arms, left first, six joints and a gripper each"
        assumed["action_kind"] = "joint, as the guide says"
        assumed["action_mode"] = "absolute, as the guide's authors record them"
    description = DatasetDescription(
        name=folder.resolve().name,
        cameras=camera_sizes(contents.columns),
        action_names=names,
        action_units=("unknown",) * action,
        proprio_names=proprio,
        proprio_units=("unknown",) * state,
        action_kind="joint" if two_arms else "unknown",
        action_mode="absolute" if two_arms else "unknown",
        gripper="unknown",
        fps=DEFAULT_FPS,
    )
    return About(description, ("",) * len(contents.lengths), assumed)


def _names(part: str, width: int, known: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
    if width not in known:
        return tuple(f"{part}_{i}" for i in range(width))
    return tuple(f"{side}_{name}" for side in _SIDES for name in known[width])


def _from_file(folder: Path, contents: Contents) -> About:
    path = folder / ABOUT
    content, description = load_described(path)
    if content.get("layout") != LAYOUT:
        raise UserError(f"{path} has layout {content.get('layout')!r}, expected {LAYOUT!r}. Write the set again.")
    texts = _instructions(path, content, contents.lengths)
    seen = (contents.action.shape[1], contents.columns[STATE].shape[1], camera_sizes(contents.columns))
    told = (description.action_dim, description.proprio_dim, description.cameras)
    if seen != told:
        raise UserError(
            f"{path} describes {told[0]} action and {told[1]} state dimensions and cameras {told[2]}; {ACTIONS} and "
            f"observations have {seen[0]}, {seen[1]} and {seen[2]}. Restore it, or write the set again."
        )
    _refuse_other_types(path, contents)
    if contents.sums is None:
        raise UserError(f"Dataset not found: {folder} has no checksums.npy, with which it was written. Copy it again.")
    return About(description, texts, {})


def episodes_sum(texts: Sequence[str], numbers: Sequence[int], lengths: Sequence[int]) -> str:
    """SHA-256 (hex) of what the files say about episodes: instructions, which of them each has, and lengths."""
    return hashlib.sha256(json.dumps([list(texts), list(numbers), list(lengths)]).encode()).hexdigest()


def _instructions(path: Path, content: dict[str, Any], lengths: np.ndarray) -> list[str]:
    """One an episode: each text is kept once, and its number for every episode."""
    texts, numbers = content.get("instructions"), content.get("instruction_of")
    if not isinstance(texts, list) or not isinstance(numbers, list) or len(numbers) != len(lengths):
        texts, numbers = [], [0]
    if not all(isinstance(t, str) for t in texts) or not all(type(n) is int and 0 <= n < len(texts) for n in numbers):
        raise UserError(f"{path}: its instructions are not one for each of {len(lengths)} episodes. Write it again.")
    if content.get("episodes_sha256") != episodes_sum(texts, numbers, lengths.tolist()):
        raise UserError(
            f"Rollout length mismatch: lengths or instructions are not those that {path} was written with. Copy the "
            "set again, or write it again."
        )
    return [texts[n] for n in numbers]


def _refuse_other_types(path: Path, contents: Contents) -> None:
    """Sums are of bytes: a header that calls them something else would not be noticed."""
    usual = {"action": ("<f4", contents.action), STATE: ("<f4", contents.columns[STATE])}
    usual |= {name: ("|u1", rows) for name, rows in contents.columns.items() if name.startswith(IMAGE_PREFIX)}
    for name, (wanted, rows) in usual.items():
        if rows.dtype.str != wanted:
            raise UserError(f"{path.parent}: {name} is {rows.dtype.str}, but was written as {wanted}. Copy it again.")


def pixels_of(stored: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Pictures of ``steps`` as uint8; those of numbers from 0 to 1 rounded to 8 bits. Raises ValueError for others."""
    if stored.dtype == np.uint8:
        return stored
    values = stored.astype(np.float32)
    slack = 0.5 / 255
    wrong = ~((values >= -slack) & (values <= 1 + slack))
    if wrong.any():
        place = int(np.argmax(wrong.reshape(len(values), -1).any(axis=1)))
        seen = float(values[place][wrong[place]].flat[0])
        raise ValueError(f"step {steps[place]} holds {seen:g}, expected uint8, or {stored.dtype} between 0 and 1")
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
