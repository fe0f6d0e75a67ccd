"""Single values of a bytes column of a parquet file, without reading the values around them.

Parquet libraries read whole row groups, which for images are a whole episode or more. A page is the smallest part that
can be read on its own (about 1 MB as usually written), so an index of pages gives random access to pictures. Format:
apache/parquet-format (``parquet.thrift``, ``Encodings.md``); page headers are Thrift's compact protocol.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vla_ft.data.formats.parquet_columns import explained, open_parquet
from vla_ft.data.formats.thrift_compact import read_struct

FIELDS = (
    "first_row",
    "rows",
    "offset",
    "stored",
    "size",
    "version",
    "encoding",
    "dictionary",
    "crc",
    "levels",
    "codec",
    "max_level",
)
"""Columns of a page table, int64. ``offset`` and ``stored`` bytes of the body in the file, ``size`` once decompressed;
``version`` 1 or 2 (0: a dictionary); ``dictionary`` is the table's row of the dictionary page or -1; ``crc`` -1 when
there is none; ``levels`` is the length of version 2's level bytes."""
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 3, "ZSTD": 4}
_CODEC_NAMES = (None, "snappy", "gzip", "brotli", "zstd")
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_HEADER_BYTES = 1024
_MOST_BYTES = 1 << 30
"""A page beyond this is taken for a damaged header."""


def scan_pages(path: Path, column: str) -> np.ndarray:
    """The table of pages of a bytes column (its dotted leaf name), int64 [pages, FIELDS]; reads the headers alone.

    Raises UserError when the file is damaged or stores the column in a way that this does not read.
    """
    with explained(path), open_parquet(path) as file, path.open("rb") as raw:
        names = [file.schema.column(i).path for i in range(len(file.schema))]
        if column not in names:
            raise ValueError(f"it has no column of encoded images '{column}'")
        leaf = names.index(column)
        described = file.schema.column(leaf)
        if described.physical_type != "BYTE_ARRAY" or described.max_repetition_level:
            raise ValueError(f"column {column} is {described.physical_type}, expected one BYTE_ARRAY a row")
        pages: list[list[int]] = []
        row = 0
        for group in range(file.metadata.num_row_groups):
            chunk = file.metadata.row_group(group).column(leaf)
            row += _scan_chunk(raw, chunk, row, described.max_definition_level, pages)
        if row != file.metadata.num_rows:
            raise ValueError(f"the pages of {column} have {row} rows where the footer says {file.metadata.num_rows}")
        return np.array(pages, dtype=np.int64).reshape(-1, len(FIELDS))


def read_values(descriptor: int, pages: np.ndarray, rows: Sequence[int]) -> dict[int, bytes]:
    """The bytes at ``rows`` (numbers within the file). Raises ValueError or struct.error for damage; a row without a
    value is damage as well."""
    data = np.flatnonzero(pages[:, 5] > 0)
    owners = data[np.searchsorted(pages[data, 0], np.asarray(rows, dtype=np.int64), side="right") - 1]
    result: dict[int, bytes] = {}
    for owner in np.unique(owners):
        page = dict(zip(FIELDS, pages[owner].tolist(), strict=True))
        wanted = [int(r) for r, o in zip(rows, owners, strict=True) if o == owner]
        if any(not 0 <= r - page["first_row"] < page["rows"] for r in wanted):
            raise ValueError(f"rows {wanted} are in no page")
        result |= _read_page(descriptor, pages, page, wanted)
    return result


def _scan_chunk(raw: Any, chunk: Any, first_row: int, max_level: int, pages: list[list[int]]) -> int:
    """Append the pages of a column chunk; returns its number of rows."""
    if chunk.compression not in _CODECS:
        raise ValueError(f"images compressed with {chunk.compression} are not read; write them with Snappy or none")
    codec = _CODECS[chunk.compression]
    offset, rows, dictionary = chunk.data_page_offset, 0, -1
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        offset = min(offset, chunk.dictionary_page_offset) or offset
    end = offset + chunk.total_compressed_size
    while rows < chunk.num_values:
        header, body = _page_header(raw, offset, end)
        size, stored, crc = header[2], header[3], header.get(4, -1)
        if not (0 <= size <= _MOST_BYTES and 0 <= stored <= end - body):
            raise ValueError(f"a page header at byte {offset} is damaged")
        version, count, encoding, levels, codec_here = _page_kind(header, codec)
        if version:
            record = [first_row + rows, count, body, stored, size, version, encoding, dictionary]
            rows += count
        else:
            record = [first_row + rows, count, body, stored, size, 0, encoding, -1]
            dictionary = len(pages)
        if version >= 0:
            pages.append([*record, crc if crc == -1 else crc & 0xFFFFFFFF, levels, codec_here, max_level])
        offset = body + stored
    if rows != chunk.num_values:
        raise ValueError(f"pages hold {rows} values where the footer says {chunk.num_values}")
    return rows


def _page_kind(header: dict[int, Any], codec: int) -> tuple[int, int, int, int, int]:
    """(version, values, encoding, bytes of levels, codec) of a page."""
    if header[1] == _DATA_PAGE:
        about, version, encoding, levels = header[5], 1, header[5][2], 0
    elif header[1] == _DATA_PAGE_V2:
        about, version, encoding, levels = header[8], 2, header[8][4], header[8][5] + header[8][6]
        codec = codec if about.get(7, True) else 0
    elif header[1] == _DICTIONARY_PAGE:
        about, version, encoding, levels = header[7], 0, header[7][2], 0
    else:
        raise ValueError(f"a page of unknown kind {header[1]}")
    if about[1] < 0 or levels < 0:
        raise ValueError("a page header has negative sizes")
    allowed = (_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY) if version else (_PLAIN, _PLAIN_DICTIONARY)
    if encoding not in allowed:
        raise ValueError(f"images in parquet encoding {encoding} are not read; write them plainly or with a dictionary")
    return version, about[1], encoding, levels, codec


def _page_header(raw: Any, offset: int, end: int) -> tuple[dict[int, Any], int]:
    """The header at ``offset`` and where the page's body begins. Headers may carry long statistics."""
    size = _HEADER_BYTES
    while True:
        raw.seek(offset)
        data = raw.read(min(size, end - offset))
        try:
            header, length = read_struct(data, 0)
        except IndexError:
            if len(data) < size or size > 1 << 24:
                raise ValueError(f"a page header at byte {offset} is cut off") from None
            size *= 8
        else:
            return header, offset + length


def _read_page(descriptor: int, pages: np.ndarray, page: dict[str, int], rows: Sequence[int]) -> dict[int, bytes]:
    body = os.pread(descriptor, page["stored"], page["offset"])
    values, present = _values_and_levels(_checked(body, page), page)
    places = [r - page["first_row"] for r in rows]
    if present is not None:
        missing = [r for r, place in zip(rows, places, strict=True) if not present[place]]
        if missing:
            raise ValueError(f"row {missing[0]} holds no image bytes")
        before = np.cumsum(present) - 1
        places = [int(before[place]) for place in places]
    if page["encoding"] == _PLAIN:
        found = _plain_values(values, places)
        return dict(zip(rows, (found[p] for p in places), strict=True))
    if page["dictionary"] < 0:
        raise ValueError("a page refers to a dictionary that is not there")
    keys = _hybrid(memoryview(values)[1:], values[0], max(places) + 1)
    entry = dict(zip(FIELDS, pages[page["dictionary"]].tolist(), strict=True))
    words = _plain_values(
        _decompress(_checked(os.pread(descriptor, entry["stored"], entry["offset"]), entry), entry),
        [int(keys[p]) for p in places],
    )
    return {row: words[int(keys[place])] for row, place in zip(rows, places, strict=True)}


def _checked(body: bytes, page: dict[str, int]) -> bytes:
    if len(body) != page["stored"]:
        raise ValueError("the file ends inside a page")
    if page["crc"] != -1 and zlib.crc32(body) != page["crc"]:
        raise ValueError("a page fails its checksum")
    return body


def _decompress(body: bytes, page: dict[str, int], size: int | None = None) -> bytes:
    name = _CODEC_NAMES[page["codec"]]
    size = page["size"] if size is None else size
    if name is None:
        return body
    return pa.Codec(name).decompress(body, decompressed_size=size, asbytes=True) if size else b""


def _values_and_levels(body: bytes, page: dict[str, int]) -> tuple[bytes, np.ndarray | None]:
    """The encoded values, and which rows have one (None: all)."""
    top, rows = page["max_level"], page["rows"]
    if page["version"] == 2:
        levels, values = (
            body[: page["levels"]],
            _decompress(body[page["levels"] :], page, page["size"] - page["levels"]),
        )
    else:
        values, levels = _decompress(body, page), b""
        if top:
            (length,) = struct.unpack_from("<I", values)
            levels, values = values[4 : 4 + length], values[4 + length :]
    if not top:
        return values, None
    present = _hybrid(levels, top.bit_length(), rows) == top
    return values, None if present.all() else present


def _plain_values(values: bytes, places: Sequence[int]) -> dict[int, bytes]:
    """Values at ``places`` of a PLAIN page: each is its length in four bytes, then itself."""
    wanted, found, position = set(places), {}, 0
    for place in range(max(places) + 1):
        (length,) = struct.unpack_from("<I", values, position)
        position += 4
        if position + length > len(values):
            raise ValueError("a value reaches beyond its page")
        if place in wanted:
            found[place] = values[position : position + length]
        position += length
    return found


def _hybrid(data: bytes | memoryview, width: int, count: int) -> np.ndarray:
    """``count`` numbers of ``width`` bits from the RLE / bit-packed hybrid encoding, int64 [count]."""
    if not 0 <= width <= 32:
        raise ValueError(f"numbers of {width} bits")
    parts, total, position, step = [], 0, 0, (width + 7) // 8
    while total < count:
        run, shift = 0, 0
        while True:
            byte = data[position]
            position += 1
            run |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        if run & 1:
            size = (run >> 1) * width
            bits = np.unpackbits(np.frombuffer(data[position : position + size], np.uint8), bitorder="little")
            bits = bits[: len(bits) // width * width] if width else bits
            part = (
                bits.reshape(-1, width) @ (1 << np.arange(width, dtype=np.int64)) if width else np.zeros((run >> 1) * 8)
            )
            part, position = part.astype(np.int64), position + size
        else:
            value = int.from_bytes(data[position : position + step], "little")
            part, position = np.full(min(run >> 1, count - total), value, np.int64), position + step
        if not len(part):
            raise ValueError("an empty run of numbers")
        parts.append(part)
        total += len(part)
    return np.concatenate(parts)[:count] if parts else np.empty(0, np.int64)
