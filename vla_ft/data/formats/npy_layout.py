"""The folder of the ACT guide: ``observations``, ``actions.npy`` and ``rollout_length.npy``, in every form it comes in.

All steps of all episodes lie end to end. ``actions.npy`` is float32 [N, A], ``rollout_length.npy`` int64 [episodes].
Observations are ``image_<camera>`` uint8 [N, H, W, 3] and ``state`` float32 [N, P], as one of:

- ``observations.npy``, a structured array [N]: what ``NpyWriter`` writes; ``obs[i]["state"]`` works as with dicts;
- ``observations/<key>.npy``, a file each;
- ``observations.npz``, a member each;
- ``observations.npy``, pickled: an array [N] of dicts, or one dict of arrays (``npy_pickled``; on request alone);
- headerless float32 behind the name ``observations.npy``, with ``metadata.txt`` (``npy_legacy``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vla_ft.data.formats.npy_files import FileRows, MemoryRows, NpyError, Rows, open_array, open_fields, read_header
from vla_ft.data.formats.npy_legacy import is_legacy, open_legacy
from vla_ft.data.formats.npy_pickled import open_pickled
from vla_ft.data.formats.npz_layout import NpzError, members, read_rows, verify
from vla_ft.data.formats.open_descriptors import OpenDescriptors
from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.errors import UserError

ACTIONS, LENGTHS, STATE = "actions.npy", "rollout_length.npy", "state"
OBSERVATIONS = ("observations.npy", "observations.npz", "observations")
SUMS = "checksums.npy"
"""uint32 [N, 1 + columns]: zlib.crc32 of the action and of each observation column of every step."""
_VERIFIED = 64 << 20
_LONGEST = 1 << 40


@dataclass
class Contents:
    """The arrays of a set. ``damage``: step -> what is wrong with its observation; empty in all forms but one.

    ``remarks``: what a person should know, in words. ``whole``: they lie in memory, because they had to be read whole.
    """

    action: Rows
    columns: dict[str, Rows]
    lengths: np.ndarray
    files: dict[str, Path]
    sums: Rows | None = None
    remarks: list[str] = field(default_factory=list)
    damage: Mapping[int, str] = field(default_factory=dict)
    whole: bool = False

    @property
    def summed(self) -> list[str]:
        """What the columns of ``sums`` are of, in order."""
        return ["action", *self.columns]


def open_contents(folder: Path, files: OpenDescriptors, *, allow_pickle: bool, described: bool) -> Contents:
    """Find the form and check what can be checked without reading everything. Raises UserError under the guide's names.

    ``described``: a description of ours lies there, so cameras and widths need not be the guide's.
    """
    found = _find(folder)
    try:
        if is_legacy(folder / ACTIONS):
            contents = _legacy(folder, files)
        else:
            lengths = _lengths(folder / LENGTHS)
            contents = _observations(folder, found, files, allow_pickle, lengths)
        _check_action(contents.action)
        _check_columns(contents.columns, found.name, described)
        _check_counts(contents)
        _open_sums(folder, files, contents)
    except (NpyError, NpzError) as error:
        raise UserError(f"Invalid observation format: {folder}: {error}. {_ADVICE}") from error
    except OSError as error:
        raise UserError(f"Dataset not found: {folder} cannot be read: {error}.") from error
    contents.remarks += _casts(contents, described)
    return contents


_ADVICE = "Copy it again, or write it again as docs/data.md says."


def is_npy(folder: Path) -> bool:
    """Whether a folder looks like a set of this format, whole or not."""
    if not folder.is_dir():
        return False
    observed = any((folder / name).exists() for name in OBSERVATIONS)
    return (folder / LENGTHS).is_file() or (observed and (folder / ACTIONS).is_file())


def _find(folder: Path) -> Path:
    """The observations. Raises UserError when a part of the set is not there, or is there twice."""
    if not folder.is_dir():
        raise UserError(f"Dataset not found: {folder} is no folder. Expected one with {ACTIONS}; check data.path.")
    there = [folder / name for name in OBSERVATIONS if (folder / name).exists()]
    missing = [name for name in (ACTIONS, LENGTHS) if not (folder / name).is_file()]
    missing += [] if there else [OBSERVATIONS[0]]
    if missing:
        raise UserError(
            f"Dataset not found: {folder} has no {' and no '.join(missing)}. Expected {OBSERVATIONS[0]}, {ACTIONS} and "
            f"{LENGTHS} in one folder; check data.path (an absolute path is safest)."
        )
    if len(there) > 1:
        names = " and ".join(path.name for path in there)
        raise UserError(f"Invalid observation format: {folder} has {names}. Keep the one that is meant.")
    return there[0]


def _legacy(folder: Path, files: OpenDescriptors) -> Contents:
    action, columns, steps, remarks = open_legacy(folder, files)
    contents = Contents(action, columns, _lengths(folder / LENGTHS), _named(folder, OBSERVATIONS[0]), remarks=remarks)
    if len(contents.lengths) != steps.episodes:
        raise _mismatch(f"{LENGTHS} has {len(contents.lengths)} episodes, metadata.txt counts {steps.episodes}")
    return contents


def _observations(
    folder: Path, path: Path, files: OpenDescriptors, allow_pickle: bool, lengths: np.ndarray
) -> Contents:
    action = _open_action(folder / ACTIONS, files)
    contents = Contents(action, {}, lengths, _named(folder, path.name))
    if path.is_dir():
        parts = sorted(path.glob("*.npy"))
        contents.columns = {part.stem: open_array(part, files) for part in parts}
        contents.files |= {f"{path.name}/{part.name}": part for part in parts}
        del contents.files[path.name]
    elif path.suffix == ".npz":
        _open_npz(path, files, contents)
    elif not read_header(path).pickled:
        contents.columns = open_fields(path, files)
    else:
        if not allow_pickle:
            raise UserError(_pickle_refused(path))
        contents.columns, contents.damage = open_pickled(path, lengths)
        contents.whole = True
        contents.remarks.append(_read_whole(path, "is pickled"))
    return contents


def _pickle_refused(path: Path) -> str:
    return (
        f"{path} is pickled, and pickles can carry programs. Say data.allow_pickle=true to have it read (arrays, "
        "dicts, text, numbers; nothing in it is executed), or make a set without pickles once: vla-ft data convert "
        f"from={path.parent} to=NEW_FOLDER format=npy allow_pickle=true"
    )


def _read_whole(path: Path, why: str) -> str:
    return (
        f"{path.name} {why}: all of its {path.stat().st_size / 1e6:,.1f} MB are read into the memory of the process. "
        "`vla-ft data convert … format=npy` makes a set that is read step by step"
    )


def _open_npz(path: Path, files: OpenDescriptors, contents: Contents) -> None:
    compressed = False
    for name, member in members(path).items():
        if not member.shape:
            raise NpzError(f"{name} is a single value, expected an array with time as its first axis")
        if member.position is None:
            contents.columns[name] = MemoryRows(read_rows(path, member))
            compressed = True
            continue
        if member.info.file_size <= _VERIFIED:  # pictures are not read for it: there may be all of a disk
            verify(path, member)
        step = member.dtype.itemsize * int(np.prod(member.shape[1:], dtype=np.int64))
        contents.columns[name] = FileRows(
            files, path, member.dtype, member.shape[1:], member.shape[0], member.position, step
        )
    if compressed:
        contents.whole = True
        contents.remarks.append(_read_whole(path, "is compressed"))


def _open_action(path: Path, files: OpenDescriptors) -> Rows:
    try:
        return open_array(path, files)
    except NpyError as error:
        raise UserError(f"Invalid action format: {path.parent}: {error}. {_ADVICE}") from error


def _lengths(path: Path) -> np.ndarray:
    """int64 [episodes]. Widened at once: in uint16, ``length - chunk`` wraps around. Raises UserError."""
    try:
        rows = open_array(path, OpenDescriptors(1))
        if len(rows.shape) != 1 or rows.dtype.kind not in "iu":
            raise NpyError(f"{path.name} is {rows.dtype} {rows.shape}, expected a list of whole numbers")
        values = rows.read(np.arange(rows.shape[0]))
    except NpyError as error:
        raise _mismatch(f"{path.parent}: {error}") from error
    if not len(values) or int(values.min()) < 1 or int(values.max()) >= _LONGEST:
        seen = f"{int(values.min())} to {int(values.max())} steps" if len(values) else "no episode"
        raise _mismatch(f"{path} has episodes of {seen}, expected at least one episode and one step each")
    return values.astype(np.int64)


def _mismatch(what: str) -> UserError:
    return UserError(f"Rollout length mismatch: {what}. Write {LENGTHS} again, or check how the set was copied.")


def _check_action(action: Rows) -> None:
    if len(action.shape) != 2 or action.dtype.kind not in "fiu" or not action.shape[1]:
        raise UserError(
            f"Invalid action format: {ACTIONS} is {action.dtype} {action.shape}, expected float32 (steps, 14): a "
            "row of numbers for each step."
        )


def _check_columns(columns: dict[str, Rows], where: str, described: bool) -> None:
    cameras = [name for name in columns if name.startswith(IMAGE_PREFIX)]
    if STATE not in columns or not (cameras or described):
        raise UserError(
            f"Invalid observation format: {where} has {', '.join(columns) or 'nothing'}, expected image_left, "
            "image_right and state."
        )
    for name in cameras:
        rows = columns[name]
        if len(rows.shape) != 4 or rows.shape[3] != 3 or rows.dtype.kind not in "uf" or rows.dtype.itemsize == 0:
            raise _wrong_column(where, name, rows, "uint8 (steps, height, width, 3)")
        if rows.dtype.kind == "u" and rows.dtype.itemsize != 1:
            raise _wrong_column(where, name, rows, "uint8 (steps, height, width, 3)")
    if len(columns[STATE].shape) != 2 or columns[STATE].dtype.kind not in "fiu":
        raise _wrong_column(where, STATE, columns[STATE], "float32 (steps, state_dim)")


def _wrong_column(where: str, name: str, rows: Rows, expected: str) -> UserError:
    return UserError(
        f"Invalid observation format: {name} in {where} is {rows.dtype} {rows.shape}, expected {expected}."
    )


def _check_counts(contents: Contents) -> None:
    steps, total = contents.action.shape[0], int(contents.lengths.sum())
    for name, rows in contents.columns.items():
        if rows.shape[0] != steps:
            raise UserError(
                f"Invalid observation format: {name} has {rows.shape[0]} steps, {ACTIONS} has {steps}. Expected as "
                "many observations as actions."
            )
    if total != steps:
        raise _mismatch(f"the {len(contents.lengths)} lengths add up to {total} steps, {ACTIONS} has {steps}")


def _open_sums(folder: Path, files: OpenDescriptors, contents: Contents) -> None:
    path = folder / SUMS
    if not path.is_file():
        return
    rows = open_array(path, files)
    expected = (contents.action.shape[0], 1 + len(contents.columns))
    if rows.shape != expected or rows.dtype != np.dtype("<u4"):
        raise NpyError(f"{SUMS} is {rows.dtype} {rows.shape}, expected uint32 {expected}")
    contents.sums = rows


def _casts(contents: Contents, described: bool) -> list[str]:
    """What is read otherwise than it is stored, and what differs from the guide."""
    lines = []
    for name, rows in {ACTIONS: contents.action, **contents.columns}.items():
        if name.startswith(IMAGE_PREFIX) and rows.dtype.kind == "f":
            lines.append(f"{name} is {rows.dtype}: values of 0 to 1 are read as 8 bits; uint8 takes less room")
        elif name in (ACTIONS, STATE) and rows.dtype != np.dtype("<f4"):
            order = ", big-endian" if rows.dtype.byteorder == ">" else ""
            lines.append(f"{name} is {rows.dtype.name}{order}: read as float32")
    if not described and contents.action.shape[1] != 14:
        lines.append(f"{ACTIONS} has {contents.action.shape[1]} numbers a step, the guide's two arms have 14")
    return lines


def _named(folder: Path, observations: str) -> dict[str, Path]:
    return {name: folder / name for name in (observations, ACTIONS, LENGTHS)}
