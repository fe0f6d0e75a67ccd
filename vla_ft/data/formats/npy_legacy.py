"""What the writer of the ACT guide's authors leaves: raw float32 behind the names of ``.npy`` files.

It saves arrays with ``np.save`` and then maps the same files from byte 0, so the rows overwrite NumPy's header and the
files keep its size as surplus bytes at their end. ``metadata.txt`` (one line, ``key=value`` separated by blanks) says
how many rows there are; those behind ``sample_count`` were allocated and never filled. A row of ``observations.npy`` is
[2, H, W, 3] (left and right picture, 0 to 1), then 16 positions, then 16 velocities; one of ``actions.npy`` is 14
numbers. ``rollout_length.npy`` is a real array, of uint16.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_ft.data.formats.npy_files import MAGIC, FileRows, NpyError, Rows
from vla_ft.data.formats.open_descriptors import OpenDescriptors

METADATA = "metadata.txt"
ACTION, JOINTS, CAMERAS = 14, 16, ("left", "right")
_FLOAT = np.dtype("<f4")
_SURPLUS = 256
"""More bytes than NumPy's header of such an array ever has (128 since 1.14, 80 before)."""


@dataclass(frozen=True)
class Metadata:
    """Counts of ``metadata.txt``: ``allocated`` rows, of which ``used`` hold steps of ``episodes``; pixels."""

    allocated: int
    used: int
    episodes: int
    height: int
    width: int


def is_legacy(actions: Path) -> bool:
    """Whether ``actions.npy`` is raw and a ``metadata.txt`` lies beside it."""
    with actions.open("rb") as file:
        return file.read(len(MAGIC)) != MAGIC and (actions.parent / METADATA).is_file()


def open_legacy(folder: Path, files: OpenDescriptors) -> tuple[Rows, dict[str, Rows], Metadata, list[str]]:
    """Actions, columns of observations, counts and remarks. Raises NpyError for sizes that do not fit."""
    about = read_metadata(folder / METADATA)
    picture = about.height * about.width * 3
    record = 2 * picture + 2 * JOINTS
    for name, width in (("actions.npy", ACTION), ("observations.npy", record)):
        _check_size(folder / name, about.allocated, width)
    stride = record * _FLOAT.itemsize
    observations = folder / "observations.npy"

    def column(begin: int, *shape: int) -> FileRows:
        return FileRows(files, observations, _FLOAT, shape, about.used, begin * _FLOAT.itemsize, stride)

    columns: dict[str, Rows] = {
        f"image_{camera}": column(number * picture, about.height, about.width, 3)
        for number, camera in enumerate(CAMERAS)
    }
    columns |= {"state": column(2 * picture, JOINTS), "qvel": column(2 * picture + JOINTS, JOINTS)}
    action = FileRows(files, folder / "actions.npy", _FLOAT, (ACTION,), about.used, 0, ACTION * _FLOAT.itemsize)
    remarks = [f"observations.npy and actions.npy have no .npy header: read as raw float32 by {METADATA}"]
    if about.allocated > about.used:
        remarks.append(f"{about.allocated - about.used} allocated rows behind the last step are unused and left out")
    return action, columns, about, remarks


def read_metadata(path: Path) -> Metadata:
    """The counts of ``metadata.txt``. Raises NpyError."""
    with path.open("rb") as file:
        text = file.read(1 << 16).decode("utf8", "replace")
    pairs = dict(word.split("=", 1) for word in text.split() if "=" in word)
    keys = ("total_sample_count", "sample_count", "rollout_count", "camera_height", "camera_width")
    numbers = []
    for key in keys:
        value = pairs.get(key, "")
        if not (value.isascii() and value.isdigit() and len(value) < 13 and int(value) > 0):
            raise NpyError(f"{path.name} has {key}={value[:20]!r}, expected a number above 0: was recording ended?")
        numbers.append(int(value))
    about = Metadata(*numbers)
    if about.used > about.allocated:
        raise NpyError(f"{path.name} counts {about.used} samples of {about.allocated} allocated ones")
    return about


def _check_size(path: Path, rows: int, width: int) -> None:
    expected, size = rows * width * _FLOAT.itemsize, path.stat().st_size
    if not expected <= size <= expected + _SURPLUS:
        raise NpyError(
            f"{path.name} has {size} bytes; {rows} rows of {width} raw float32 numbers take {expected} and at most "
            f"{_SURPLUS} more"
        )
