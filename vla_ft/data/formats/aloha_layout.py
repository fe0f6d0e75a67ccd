"""What an ALOHA episode file holds, from its shapes and attributes alone, and whether the files of a set agree."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import h5py
import numpy as np

from vla_ft.data.formats.hdf5_files import HDF5_DAMAGE, open_hdf5
from vla_ft.errors import UserError

EPISODE_FILE = re.compile(r"episode_(\d+)\.hdf5")
"""File names of a set; the number orders the episodes and need not be contiguous."""
COLUMNS = {"action": "action", "proprio": "observations/qpos"}
"""Numeric features and where they lie."""
IMAGES = "observations/images"
TIMES = ("observations/timestamp", "observations/timestamps", "timestamp", "timestamps")
"""Where some recorders keep a clock; ALOHA's own has none."""
UNFINISHED = ".unfinished"
"""Beside the episodes of a set that a writer of whole sets has not finished."""


@dataclass(frozen=True, kw_only=True)
class EpisodeHeader:
    """One file's shapes and attributes. ``cameras``: (height, width), or None where frames are encoded one by one."""

    path: Path
    length: int
    action_dim: int
    proprio_dim: int
    cameras: dict[str, tuple[int, int] | None]
    sim: bool | None
    instruction: str
    fps: float | None


class EpisodePaths(Sequence[Path]):
    """The files ``names`` of ``folder``, made into paths when they are asked for: sets may have many.

    A name holds the folders on the way, where there are any: ``task/episode_0.hdf5``.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> EpisodePaths: ...
    def __getitem__(self, place: int | slice) -> Path | EpisodePaths:
        if isinstance(place, slice):
            return EpisodePaths(self.folder, self.names[place])
        return self.folder / self.names[place]


def task_of(name: str) -> str:
    """The folders on the way to a file: ``task`` of ``task/episode_0.hdf5``, empty for ``episode_0.hdf5``."""
    return name.rpartition("/")[0]


def list_episodes(path: Path) -> EpisodePaths:
    """The episode files of a folder in the order of their numbers, or the one file given. Raises UserError.

    A folder without files of its own stands for the folders in it, one a task, in the order of their names.
    """
    if path.is_file():
        return EpisodePaths(path.parent, [path.name])
    if not path.is_dir():
        raise UserError(f"No dataset at {path}. Expected a folder of episode_<number>.hdf5 files, or one such file.")
    _refuse_unfinished(path)
    present = os.listdir(path)
    files = [name for name in present if name.startswith("episode_") and name.endswith(".hdf5")] or _below(path)
    numbers = {n: int(match[1]) for n in files if (match := EPISODE_FILE.fullmatch(n.rpartition("/")[2]))}
    strange = sorted(set(files) - numbers.keys())
    if strange:
        raise UserError(
            f"{path / strange[0]} is not named episode_<number>.hdf5. Rename it, or move it out of the set "
            f"({len(strange)} such files)."
        )
    if not files:
        raise UserError(
            f"No episodes in {path}: expected episode_<number>.hdf5 files, found "
            f"{', '.join(sorted(present)[:5]) or 'nothing'}. Point data.path to the folder that holds them."
        )
    return EpisodePaths(path, sorted(files, key=lambda name: (task_of(name).split("/"), numbers[name], name)))


def _below(path: Path) -> list[str]:
    """Episode files in the folders of a folder, relative to it. Raises UserError for one that is not finished."""
    found = [file.relative_to(path).as_posix() for file in path.rglob("episode_*.hdf5")]
    for task in sorted({task_of(name) for name in found}):
        _refuse_unfinished(path / task)
    return found


def _refuse_unfinished(path: Path) -> None:
    if (path / UNFINISHED).exists():
        raise UserError(
            f"{path} is not finished: what wrote it was interrupted. Give that command again, and it goes on; or "
            f"remove {path / UNFINISHED} to use the episodes that are there."
        )


def inspect_episode(path: Path) -> EpisodeHeader:
    """Read the shapes and attributes of one file. Raises UserError naming the file and what does not fit."""
    try:
        return _inspect(path)
    except HDF5_DAMAGE as error:
        raise UserError(f"{path} is damaged: {error}. Copy the file again, or remove it from the set.") from error


def _inspect(path: Path) -> EpisodeHeader:
    with open_hdf5(path) as file:
        shapes = {key: _column_shape(file, path, where) for key, where in COLUMNS.items()}
        length = shapes["action"][0]
        cameras = {}
        lengths = {COLUMNS["proprio"]: shapes["proprio"][0]}
        for camera, dataset in _image_datasets(file, path).items():
            cameras[camera] = _frame_size(dataset, path)
            lengths[f"{IMAGES}/{camera}"] = dataset.shape[0]
        for where, other in lengths.items():
            if other != length:
                raise UserError(
                    f"{path}: /{where} has {other} steps but /action has {length}. Expected one row a step in every "
                    "dataset: repair the episode, or remove it from the set."
                )
        if length == 0:
            raise UserError(f"{path} holds no steps. Remove it from the set.")
        return EpisodeHeader(
            path=path,
            length=length,
            action_dim=shapes["action"][1],
            proprio_dim=shapes["proprio"][1],
            cameras=cameras,
            sim=_sim(file, path),
            instruction=_instruction(file, path),
            fps=_fps(file, path),
        )


def check_agreement(headers: Sequence[EpisodeHeader], counts: Sequence[int], cameras: Sequence[str]) -> None:
    """Refuse a set whose files differ in widths, ``sim``, or the named cameras and their sizes. Raises UserError.

    ``headers``: the first of each kind; ``counts``: how many files are of it.
    """
    for header in headers:
        missing = [camera for camera in cameras if camera not in header.cameras]
        if missing:
            raise UserError(
                f"{header.path} has no camera '{missing[0]}' (it has: {', '.join(header.cameras) or 'none'}), other "
                "episodes have it. Remove the episode, or name the cameras that all episodes have with data.cameras."
            )
    kinds = [kind_of(header, cameras) for header in headers]
    for what in kinds[0]:
        tally: Counter[Hashable] = Counter()
        for kind, count in zip(kinds, counts, strict=True):
            tally[kind[what]] += count
        common, many = tally.most_common(1)[0]
        odd = next((place for place, kind in enumerate(kinds) if kind[what] != common), None)
        if odd is not None:
            raise UserError(
                f"{headers[odd].path} has {what} {kinds[odd][what]}, but {many} of the {sum(counts)} episodes have "
                f"{common}. A set must agree: move the episodes that differ to a folder of their own."
            )


def kind_of(header: EpisodeHeader, cameras: Sequence[str]) -> dict[str, Hashable]:
    """What the files of a set must agree in, by the words that name it."""
    return {
        "an action width": header.action_dim,
        "a qpos width": header.proprio_dim,
        "attribute sim": header.sim,
        "a rate (fps) of": header.fps,
        **{f"pictures of camera {camera}:": _pictures(header, camera) for camera in cameras},
    }


def _pictures(header: EpisodeHeader, camera: str) -> str:
    if camera not in header.cameras:
        return "none"
    size = header.cameras[camera]
    return "encoded" if size is None else f"{size[0]} x {size[1]} pixels"


def _column_shape(file: h5py.File, path: Path, where: str) -> tuple[int, int]:
    dataset = file.get(where)
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(
            f"{path} has no dataset /{where} (it holds: {', '.join(file) or 'nothing'}). Expected ALOHA's layout: "
            "/action, /observations/qpos, /observations/images/<camera>."
        )
    if dataset.ndim != 2 or dataset.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: /{where} is {dataset.dtype} {dataset.shape}, expected numbers of shape [steps, width]."
        )
    return dataset.shape


def _image_datasets(file: h5py.File, path: Path) -> dict[str, h5py.Dataset]:
    group = file.get(IMAGES, {})
    strange = [name for name, member in group.items() if not isinstance(member, h5py.Dataset)]
    if strange:
        raise UserError(f"{path}: /{IMAGES}/{strange[0]} is a group, expected a dataset of frames.")
    return dict(group.items())


def _frame_size(dataset: h5py.Dataset, path: Path) -> tuple[int, int] | None:
    """The shape says how frames are stored; attribute ``compress`` is set by some recorders only."""
    if dataset.ndim == 4 and dataset.dtype == np.uint8 and dataset.shape[3] == 3:
        return dataset.shape[1], dataset.shape[2]
    in_padded_rows = dataset.ndim == 2 and dataset.dtype == np.uint8
    in_rows = dataset.ndim == 1 and dataset.dtype.kind in "OSV"
    if in_padded_rows or in_rows:
        return None
    raise UserError(
        f"{path}: {dataset.name} is {dataset.dtype} {dataset.shape}, expected uint8 frames [steps, height, width, 3] "
        "or one encoded JPEG a row."
    )


def _fps(file: h5py.File, path: Path) -> float | None:
    value = _attribute(file, "fps")
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value < np.inf:
        raise _strange(path, "fps", value, "steps per second above 0")
    return float(value)


def _sim(file: h5py.File, path: Path) -> bool | None:
    value = _attribute(file, "sim")
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise _strange(path, "sim", value, "true or false")
    return bool(value)


def _instruction(file: h5py.File, path: Path) -> str:
    value = _attribute(file, "language_instruction")
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        text = b""
    if text is not None and not isinstance(text, str):
        raise _strange(path, "language_instruction", value, "one text in UTF-8")
    return text or ""


def _attribute(file: h5py.File, name: str) -> object:
    """An attribute's value, out of its list where that has one element; None without it."""
    value = file.attrs.get(name)
    if isinstance(value, h5py.Empty):
        return None
    alone = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1)
    return value.item() if alone else value


def _strange(path: Path, name: str, value: object, expected: str) -> UserError:
    return UserError(f"{path}: attribute {name} is {value!r}, expected {expected}. Correct it, or remove the episode.")
