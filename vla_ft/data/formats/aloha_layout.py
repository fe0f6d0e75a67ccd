"""What an ALOHA episode file holds, from its shapes and attributes alone, and whether the files of a set agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vla_ft.data.formats.damage import damage_sentence
from vla_ft.data.formats.hdf5_files import open_hdf5
from vla_ft.errors import UserError, unknown

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


def list_episodes(path: Path) -> list[Path]:
    """The episode files of a folder in the order of their numbers, or the one file given. Raises UserError.

    A folder without files of its own stands for the folders in it, one a task, in the order of their names.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"No dataset at {path}. Expected a folder of episode_<number>.hdf5 files, or one such file.")
    if (path / UNFINISHED).exists():
        raise UserError(
            f"{path} is not finished: what wrote it was interrupted. Give that command again, and it goes on; or "
            f"remove {path / UNFINISHED} to use the episodes that are there."
        )
    files = sorted(path.glob("episode_*.hdf5")) or sorted(path.rglob("episode_*.hdf5"))
    strange = [p.name for p in files if not EPISODE_FILE.fullmatch(p.name)]
    if strange:
        raise UserError(
            f"{path / strange[0]} is not named episode_<number>.hdf5. Rename it, or move it out of the set "
            f"({len(strange)} such files)."
        )
    if not files:
        found = sorted(p.name for p in path.iterdir())[:5]
        raise UserError(
            f"No episodes in {path}: expected episode_<number>.hdf5 files, found {', '.join(found) or 'nothing'}. "
            "Point data.path to the folder that holds them."
        )
    return sorted(files, key=lambda p: (p.parent, _number(p), p.name))


def inspect_episode(path: Path) -> EpisodeHeader:
    """Read the shapes and attributes of one file. Raises UserError naming the file and what does not fit."""
    try:
        return _inspect(path)
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # what HDF5 says of a hole in a file
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
        attributes = file.attrs
        return EpisodeHeader(
            path=path,
            length=length,
            action_dim=shapes["action"][1],
            proprio_dim=shapes["proprio"][1],
            cameras=cameras,
            sim=bool(attributes["sim"]) if "sim" in attributes else None,
            instruction=_text(attributes.get("language_instruction", "")),
            fps=float(attributes["fps"]) if "fps" in attributes else None,
        )


def check_agreement(headers: Sequence[EpisodeHeader], cameras: Sequence[str]) -> None:
    """Refuse a set whose files differ in widths, ``sim``, or the named cameras and their sizes. Raises UserError."""
    for header in headers:
        missing = [camera for camera in cameras if camera not in header.cameras]
        if missing:
            raise UserError(
                f"{header.path} has no camera '{missing[0]}' (it has: {', '.join(header.cameras) or 'none'}), other "
                "episodes have it. Remove the episode, or name the cameras that all episodes have with data.cameras."
            )
    _agree(headers, "an action width", lambda h: h.action_dim)
    _agree(headers, "a qpos width", lambda h: h.proprio_dim)
    _agree(headers, "attribute sim", lambda h: h.sim)
    _agree(headers, "a rate (fps) of", lambda h: h.fps)
    for camera in cameras:
        _agree(headers, f"frames of {camera} of size", lambda h, c=camera: h.cameras[c] or "encoded")  # type: ignore[misc]


def sound_headers(
    paths: Sequence[Path], cameras: Sequence[str] | None
) -> tuple[dict[int, EpisodeHeader], dict[int, str], list[str]]:
    """Headers of the files that can be read and are like most others, what is wrong with the rest (both by place), and
    the cameras that are expected of all: those asked for, else those that most files have.

    Raises UserError when nothing sound is left, for a camera that no file has, and when the disk fails, not a file.
    """
    headers: dict[int, EpisodeHeader] = {}
    damage: dict[int, str] = {}
    for place, path in enumerate(paths):
        try:
            headers[place] = inspect_episode(path)
        except UserError as error:
            damage[place] = damage_sentence(error)
    if not headers:
        raise UserError(f"None of the {len(paths)} episodes can be read. The first: {damage[0]}")
    counts = Counter(camera for header in headers.values() for camera in header.cameras)
    for camera in cameras or ():
        if camera not in counts:
            raise unknown("camera", camera, counts)
    expected = (
        [c for c, n in counts.items() if 2 * n > len(headers)] if cameras is None else list(dict.fromkeys(cameras))
    )
    kinds = {place: _kind(header, expected) for place, header in headers.items()}
    usual, many = Counter(tuple(kind.items()) for kind in kinds.values()).most_common(1)[0]
    for place, kind in kinds.items():
        odd = next((what for what, value in usual if kind[what] != value), None)
        if odd is not None:
            damage[place] = (
                f"{paths[place]} has {odd} {kind[odd]}, but {many} of the {len(paths)} episodes have "
                f"{dict(usual)[odd]}. Move it out of the set."
            )
            del headers[place]
    return headers, damage, expected


def _kind(header: EpisodeHeader, cameras: Sequence[str]) -> dict[str, Hashable]:
    """What the files of a set must agree in."""
    sizes = {f"camera {camera} of size": header.cameras.get(camera, "missing") or "encoded" for camera in cameras}
    return {
        "an action width": header.action_dim,
        "a qpos width": header.proprio_dim,
        "attribute sim": header.sim,
        "a rate (fps) of": header.fps,
        **sizes,
    }


def _agree(headers: Sequence[EpisodeHeader], what: str, value: Callable[[EpisodeHeader], Hashable]) -> None:
    common, count = Counter(value(h) for h in headers).most_common(1)[0]
    odd = next((h for h in headers if value(h) != common), None)
    if odd is not None:
        raise UserError(
            f"{odd.path} has {what} {value(odd)}, but {count} of the {len(headers)} episodes have {common}. A set must "
            "agree: move the episodes that differ to a folder of their own."
        )


def _number(path: Path) -> int:
    match = EPISODE_FILE.fullmatch(path.name)
    return int(match[1]) if match else 0


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


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
