"""TFRecord files without TensorFlow: length-prefixed records, each with two masked CRC-32C sums.

A record is: uint64 length, uint32 sum of those 8 bytes, the payload, uint32 sum of the payload, all little-endian. The
mask rotates a sum by 15 bits and adds a constant, so that a sum over data that holds sums stays a good sum (TensorFlow,
``tensorflow/core/lib/io/record_writer.h``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla_ft.errors import UserError

HEADER, FOOTER = 12, 4
_MASK_DELTA = 0xA282EAD8


class Record(NamedTuple):
    """Where a payload lies in its file, and its stored sum (masked, as written)."""

    offset: int
    size: int
    crc: int


def frame(payload: bytes) -> bytes:
    """The payload as a record."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", masked_crc(payload))))


def masked_crc(data: bytes | np.ndarray) -> int:
    """Masked CRC-32C of ``data``, uint32."""
    crc = _crc32c()(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_payload(path: Path, record: Record, number: int | None = None) -> bytes:
    """The payload of a record, its sum checked. Raises UserError naming the file and the record."""
    with _open(path) as file:
        try:
            payload = read_exactly(file.fileno(), record.offset, record.size)
        except EOFError as error:
            raise damaged_record(path, number, f"the file ends {error} bytes too early") from error
    if masked_crc(payload) != record.crc:
        raise damaged_record(path, number, f"the checksum of its {record.size} bytes is not the stored one")
    return payload


def read_exactly(descriptor: int, begin: int, size: int) -> bytes:
    """``size`` bytes of a file from ``begin``. Raises EOFError, with the number of missing bytes, at its end."""
    found = os.pread(descriptor, size, begin)
    while len(found) < size:  # the kernel cuts reads above 2 GiB
        more = os.pread(descriptor, size - len(found), begin + len(found))
        if not more:
            raise EOFError(size - len(found))
        found += more
    return found


def scan(
    path: Path, payloads: bool = True, damaged: dict[int, str] | None = None
) -> Iterator[tuple[Record, memoryview]]:
    """Every record of a file in order. Raises UserError at the first that is damaged.

    A payload is valid until the next one is asked for: they share one buffer, because fresh memory for every record
    costs several times what reading and checking it does. Without ``payloads`` their bytes are neither read nor
    checked, and come back empty. With ``damaged``, damage is noted there by the record's number instead of raised, and
    such records do not come; behind a damaged length nothing more does.
    """
    size = _size(path)
    offset = number = 0
    buffer = np.empty(HEADER, dtype=np.uint8)
    with _open(path) as file:
        while offset < size:
            header = os.pread(file.fileno(), HEADER, offset)
            try:
                length = _length(path, number, header, size - offset)
            except UserError as error:
                if damaged is None:
                    raise
                damaged[number] = f"{error} The records behind it cannot be found."
                return
            offset += HEADER
            wanted = length * payloads + FOOTER
            if len(buffer) < wanted:
                buffer = np.empty(2 * wanted, dtype=np.uint8)
            _fill(path, number, file.fileno(), buffer[:wanted], offset if payloads else offset + length)
            frozen = buffer[:wanted]
            frozen.flags.writeable = False
            payload, crc = frozen[:-FOOTER], int(frozen[-FOOTER:].view("<u4")[0])
            if not payloads or masked_crc(payload) == crc:
                yield Record(offset, length, crc), payload.data
            elif damaged is None:
                raise damaged_record(path, number, f"the checksum of its {length} bytes is not the stored one")
            else:
                damaged[number] = str(
                    damaged_record(path, number, f"the checksum of its {length} bytes is not the stored one")
                )
            offset += length + FOOTER
            number += 1


def sound_length(path: Path) -> tuple[int, int]:
    """(bytes, records) of the longest beginning of a file that holds whole records with right sums.

    What a killed writer left behind it is not a record.
    """
    end = count = 0
    try:
        for record, _ in scan(path):
            end, count = record.offset + record.size + FOOTER, count + 1
    except UserError:
        pass
    return end, count


def _length(path: Path, number: int, header: bytes, left: int) -> int:
    if len(header) < HEADER:
        raise damaged_record(path, number, f"{left} bytes are left where a record begins, expected at least {HEADER}")
    length, crc = struct.unpack("<QI", header)
    if masked_crc(header[:8]) != crc:
        raise damaged_record(path, number, "the checksum of its length is not the stored one")
    if length > left - HEADER - FOOTER:
        raise damaged_record(path, number, f"it claims {length} bytes and {left - HEADER - FOOTER} are left")
    return length


@cache
def _crc32c() -> Callable[[bytes | np.ndarray], int]:
    # Not at the top: the formats that need no sums work where this wheel is missing.
    try:
        import google_crc32c
    except ImportError as error:
        raise UserError(
            "TFRecord files need the package google-crc32c, which this environment lacks. Build the image again "
            "(invoke build), or install the environment's lock file."
        ) from error
    if google_crc32c.implementation != "c":
        raise UserError(
            "The installed google-crc32c has no compiled part and would take minutes a gigabyte. Install its wheel for "
            "this machine."
        )
    return google_crc32c.value  # type: ignore[no-any-return]


def damaged_record(path: Path, number: int | None, what: str) -> UserError:
    """The error for a record that is not what was written."""
    where = "a record" if number is None else f"record {number}"
    return UserError(f"{path}: {where} is damaged: {what}. Copy the file again from where it came.")


def _open(path: Path):  # type: ignore[no-untyped-def]
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Expected a shard of the dataset there.") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Expected a shard of the dataset there.") from error


def _fill(path: Path, number: int, descriptor: int, target: np.ndarray, offset: int) -> None:
    """Fill ``target`` (uint8) from ``offset``. Raises UserError at the file's end."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:].data], offset + done)
        if not count:
            raise damaged_record(path, number, f"the file ends {len(target) - done} bytes too early")
        done += count
