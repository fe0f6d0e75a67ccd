"""Arrays in ``.npy`` files, read row by row from their place: no pickle, and no more memory than what is asked for.

A memory map would be as flat, but a file that is cut while it is mapped kills the process; here that is an error.
"""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vla_ft.data.formats.open_descriptors import OpenDescriptors

MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 10_000
"""NumPy's own limit of a header's text."""
_STEPS = 1 << 40
"""More rows than any file has: what a damaged header may claim."""


class NpyError(ValueError):
    """What is wrong with a file or its contents, without the file's name."""


@dataclass(frozen=True)
class Header:
    """What an ``.npy`` file says about itself; ``begin``: where its numbers do."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    begin: int

    @property
    def pickled(self) -> bool:
        """Whether the file holds Python objects behind the header instead of numbers."""
        return bool(self.dtype.hasobject)


class Rows(Protocol):
    """An array whose first axis is time. ``shape`` is that of all of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """All dimensions, time first."""

    @property
    def dtype(self) -> np.dtype:
        """As it is stored."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The rows int64 [n], inside the array, as they are stored. Raises NpyError and OSError."""


@dataclass(frozen=True)
class MemoryRows:
    """An array that had to be read whole."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Rows``."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype:
        """See ``Rows``."""
        return self.values.dtype

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See ``Rows``."""
        return self.values[rows]


@dataclass(frozen=True)
class FileRows:
    """Rows of ``dtype`` and ``row_shape`` in a file: the first at byte ``begin``, the next ``stride`` bytes further on.

    A stride above a row's own size steps over what lies between: other columns of the same record.
    """

    files: OpenDescriptors
    path: Path
    dtype: np.dtype
    row_shape: tuple[int, ...]
    count: int
    begin: int
    stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Rows``."""
        return (self.count, *self.row_shape)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See ``Rows``. Neighbouring rows are one read where nothing lies between them."""
        size = self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))
        data = b"".join(self._bytes(first, number, size) for first, number in _runs(rows, joined=size == self.stride))
        flat = np.frombuffer(data, dtype=self.dtype) if data else np.empty(0, self.dtype)
        return flat.reshape(len(rows), *self.row_shape)

    def _bytes(self, first: int, number: int, size: int) -> bytes:
        position, wanted = self.begin + first * self.stride, number * size
        descriptor = self.files.get(self.path)
        data = os.pread(descriptor, wanted, position)
        while len(data) < wanted:
            more = os.pread(descriptor, wanted - len(data), position + len(data))
            if not more:
                raise NpyError(f"{self.path.name} ends {wanted - len(data)} bytes too early")
            data += more
        return data


def open_array(path: Path, files: OpenDescriptors) -> Rows:
    """The array of a plain ``.npy`` file. Raises NpyError for what is none, for pickled objects and for a wrong size.

    Arrays in Fortran order, which have no rows in one piece, are read whole.
    """
    header = read_header(path)
    if header.pickled:
        raise NpyError(f"{path.name} holds pickled Python objects, expected plain numbers")
    check_size(path, header)
    if not header.shape:
        raise NpyError(f"{path.name} is a single value, expected an array with time as its first axis")
    if header.fortran and len(header.shape) > 1:
        return MemoryRows(_read_fortran(path, header))
    step = header.dtype.itemsize * int(np.prod(header.shape[1:], dtype=np.int64))
    return FileRows(files, path, header.dtype, header.shape[1:], header.shape[0], header.begin, step)


def open_fields(path: Path, files: OpenDescriptors) -> dict[str, Rows]:
    """The fields of a structured ``.npy`` array [N] by name: one record a step. Raises NpyError as ``open_array``."""
    header = read_header(path)
    check_size(path, header)
    if header.dtype.names is None or header.pickled or len(header.shape) != 1:
        raise NpyError(f"{path.name} is {describe_header(header)}, expected one record of named fields a step")
    found: dict[str, Rows] = {}
    for name in header.dtype.names:
        field, offset = header.dtype.fields[name][:2]  # type: ignore[index]
        found[name] = FileRows(
            files, path, field.base, field.shape, header.shape[0], header.begin + offset, header.dtype.itemsize
        )
    return found


def read_header(path: Path) -> Header:
    """Parse the header of an ``.npy`` file (NumPy's format versions 1 to 3). Raises NpyError."""
    with path.open("rb") as file:
        head = file.read(12)
        if not head.startswith(MAGIC) or len(head) < 12 or head[6] not in (1, 2, 3):
            raise NpyError(f"{path.name} is no .npy file (it begins with {head[:8]!r})")
        width = 2 if head[6] == 1 else 4
        size = int.from_bytes(head[8 : 8 + width], "little")
        if size > _HEADER_BYTES:
            raise NpyError(f"{path.name} has a header of {size} bytes, more than NumPy reads")
        file.seek(8 + width)
        text = file.read(size)
    try:
        fields = ast.literal_eval(text.decode("utf8" if head[6] == 3 else "latin1"))
        shape, dtype = tuple(fields["shape"]), np.lib.format.descr_to_dtype(fields["descr"])
        fortran = bool(fields["fortran_order"])
    except Exception as error:  # a damaged header makes the parser and NumPy stumble in many ways
        raise NpyError(f"{path.name} has a damaged .npy header ({type(error).__name__})") from error
    if len(text) < size or not all(type(n) is int and 0 <= n < _STEPS for n in shape):
        raise NpyError(f"{path.name} has a damaged .npy header (shape {shape})")
    return Header(dtype, shape, fortran, 8 + width + size)


def check_size(path: Path, header: Header) -> None:
    """Raise NpyError unless a plain file has the bytes that its header promises."""
    if header.pickled:
        return
    expected = header.begin + header.dtype.itemsize * int(np.prod(header.shape, dtype=object))
    size = path.stat().st_size
    if size != expected:
        raise NpyError(f"{path.name} is {describe_header(header)}, which takes {expected} bytes; it has {size}")


def describe_header(header: Header) -> str:
    """Kind and shape in a few words."""
    kind = "records" if header.dtype.names else str(header.dtype)
    return f"{kind} {header.shape}"


def write_header(dtype: np.dtype, shape: Sequence[int]) -> bytes:
    """A header whose size does not depend on the number of rows (NumPy leaves room for it), so that it can be written
    again when that is known. Raises ValueError for names that version 1 of the format cannot hold."""
    stream = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, about)
    return stream.getvalue()


def _read_fortran(path: Path, header: Header) -> np.ndarray:
    flat = np.fromfile(path, dtype=header.dtype, offset=header.begin)
    return np.ascontiguousarray(flat.reshape(header.shape, order="F"))


def _runs(rows: np.ndarray, joined: bool) -> list[tuple[int, int]]:
    """(first row, number of rows) of every stretch that is one read."""
    if not len(rows):
        return []
    if not joined:
        return [(int(row), 1) for row in rows]
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(rows)]])
    return [(int(rows[a]), int(b - a)) for a, b in zip(starts, ends, strict=True)]
