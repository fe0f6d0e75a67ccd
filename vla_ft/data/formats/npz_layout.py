"""A folder of ``episode_<number>.npz`` files and a ``dataset.json``: NumPy's own format, without pickles.

An episode of T steps holds ``action`` float32 [T, A], ``proprio`` float32 [T, P], ``instruction`` uint8 (UTF-8), and
for each camera either ``image_<camera>`` uint8 [T, H, W, 3] or, encoded one by one as JPEG or PNG,
``image_<camera>.data`` uint8 (all images end to end) with ``image_<camera>.offsets`` int64 [T + 1].

``dataset.json`` holds the description (names, units, fps, cameras) and the length of every episode, and is written
last.
"""

from __future__ import annotations

import ast
import os
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_ft.data.formats.descriptions import load_described
from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError

DATASET = "dataset.json"
LAYOUT = "vla_ft npz 1"
EPISODE_FILE = re.compile(r"episode_(\d{6,})\.npz")
DATA, OFFSETS = ".data", ".offsets"
_LOCAL_HEADER = 30
_NPY = re.compile(rb"\x93NUMPY(?:\x01\x00(?P<short>..)|[\x02\x03]\x00(?P<long>....))", re.DOTALL)


class NpzError(ValueError):
    """What is wrong with a file, without its name."""


@dataclass(frozen=True)
class Member:
    """An array of a file: where its numbers begin (None when compressed), and what they are."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    position: int | None
    info: zipfile.ZipInfo


def episode_file(number: int) -> str:
    """File name of an episode."""
    return f"episode_{number:06d}.npz"


def read_dataset(folder: Path) -> tuple[DatasetDescription, np.ndarray]:
    """Description and lengths (int64 [episodes]) of a finished set. Raises UserError."""
    path = folder / DATASET
    if not path.is_file():
        raise UserError(
            f"{folder} has no {DATASET}. It is written when a set is finished: finish the conversion, or write it with "
            f'"layout": "{LAYOUT}", "description" and "lengths" (docs/data.md).'
        )
    content, description = load_described(path)
    if content.get("layout") != LAYOUT:
        raise UserError(f"{path} has layout {content.get('layout')!r}, expected {LAYOUT!r}. Write the set again.")
    lengths = content.get("lengths")
    if not isinstance(lengths, list) or not all(type(n) is int and 0 < n < 1 << 40 for n in lengths):
        raise UserError(
            f"{path}: 'lengths' is no list of numbers of steps above 0. Restore it, or write the set again."
        )
    return description, np.array(lengths, dtype=np.int64)


def members(path: Path) -> dict[str, Member]:
    """The arrays of an episode file by name, from its directory and headers alone. Raises NpzError."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb", buffering=0) as file:
            found = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise NpzError(f"member {name} is there twice")
                found[name] = _member(archive, file.fileno(), info, name)
            return found
    except FileNotFoundError as error:
        raise NpzError("the file is missing") from error
    except NpzError:
        raise
    except Exception as error:  # zipfile raises whatever damage makes it stumble over
        raise NpzError(f"no whole zip file ({type(error).__name__}: {error})") from error


def read_rows(path: Path, member: Member, rows: np.ndarray | slice | None = None) -> np.ndarray:
    """Rows of an array (all by default; int64 [n] or a slice of step 1). Raises NpzError.

    Of an uncompressed member only those rows are read; a compressed one is expanded whole.
    """
    if member.position is None:
        whole = _expand(path, member)
        return whole if rows is None else whole[rows]
    width = int(np.prod(member.shape[1:], dtype=np.int64)) * member.dtype.itemsize
    if rows is None or isinstance(rows, slice):
        start, stop, _ = (rows or slice(None)).indices(member.shape[0])
        spans = [(start, stop)]
    else:
        spans = [(int(row), int(row) + 1) for row in rows]
    with path.open("rb", buffering=0) as file:
        parts = [_pread(file.fileno(), member.position + a * width, (b - a) * width) for a, b in spans]
    flat = np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype=member.dtype)
    return flat.reshape(sum(b - a for a, b in spans), *member.shape[1:])


def verify(path: Path, member: Member) -> None:
    """Check the zip sum of an uncompressed member, in blocks; expanding a compressed one checks its own.

    Raises NpzError.
    """
    if member.position is None:
        return
    header = member.info.file_size - int(np.prod(member.shape, dtype=np.int64)) * member.dtype.itemsize
    position, left, crc = member.position - header, member.info.file_size, 0
    with path.open("rb", buffering=0) as file:
        while left:
            block = _pread(file.fileno(), position, min(left, 1 << 20))
            crc, position, left = zlib.crc32(block, crc), position + len(block), left - len(block)
    if crc != member.info.CRC:
        raise NpzError(f"the checksum of {member.name} is not the stored one")


def _member(archive: zipfile.ZipFile, descriptor: int, info: zipfile.ZipInfo, name: str) -> Member:
    if info.compress_type == zipfile.ZIP_STORED:
        if info.compress_size != info.file_size:
            raise NpzError(f"{name} claims {info.file_size} bytes and has {info.compress_size}")
        local = _pread(descriptor, info.header_offset, _LOCAL_HEADER)
        # Not the directory's lengths: the local header has its own, and NumPy pads it.
        names, extra = struct.unpack("<HH", local[26:30])
        begin = info.header_offset + _LOCAL_HEADER + names + extra
        if begin + info.file_size > os.fstat(descriptor).st_size:
            raise NpzError(f"{name} reaches beyond the end of the file")
        head = _pread(descriptor, begin, min(info.file_size, 4096))
    else:
        begin = None
        with archive.open(info) as stream:
            head = stream.read(4096)
    shape, dtype, size = _npy_header(head, name)
    expected = size + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if expected != info.file_size:
        raise NpzError(f"{name} is {dtype} {shape}, which takes {expected} bytes; it has {info.file_size}")
    return Member(name, shape, dtype, None if begin is None else begin + size, info)


def _npy_header(head: bytes, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and header size of an .npy file (NumPy's format versions 1 to 3). Pickled objects are refused."""
    match = _NPY.match(head)
    if match is None:
        raise NpzError(f"{name} is no .npy array")
    raw = match["short"] or match["long"]
    size = match.end() + int.from_bytes(raw, "little")
    try:
        fields = ast.literal_eval(head[match.end() : size].decode("latin1"))
        shape, dtype, fortran = tuple(fields["shape"]), np.dtype(fields["descr"]), fields["fortran_order"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise NpzError(f"{name} has a damaged .npy header") from error
    if dtype.hasobject or fortran or dtype.kind not in "fiub" or not all(type(n) is int and n >= 0 for n in shape):
        raise NpzError(f"{name} is {dtype} {shape}{', in Fortran order' if fortran else ''}, expected plain numbers")
    return shape, dtype, size


def _expand(path: Path, member: Member) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member.info.filename) as stream:
            content = stream.read()
    except Exception as error:  # as in members
        raise NpzError(f"{member.name} cannot be expanded ({type(error).__name__}: {error})") from error
    size = int(np.prod(member.shape, dtype=np.int64)) * member.dtype.itemsize
    if len(content) < size:
        raise NpzError(f"{member.name} ends {size - len(content)} bytes too early")
    return np.frombuffer(content, dtype=member.dtype, offset=len(content) - size).reshape(member.shape)


def _pread(descriptor: int, position: int, size: int) -> bytes:
    data = os.pread(descriptor, size, position)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), position + len(data))
        if not more:
            raise NpzError(f"the file ends {size - len(data)} bytes too early")
        data += more
    return data
