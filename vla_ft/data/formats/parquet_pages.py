"""Single values of a bytes column of a parquet file, without reading the values around them.

Parquet libraries read whole row groups, and LeRobot writes the pictures of an episode as one row group with a single
page of many megabytes. So an index says where each value lies in its decompressed page, and where in the file the parts
of that page begin that can be decompressed on their own (``snappy_blocks``). Format: apache/parquet-format
(``parquet.thrift``, ``Encodings.md``); page headers are Thrift's compact protocol.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vla_ft.data.formats.parquet_columns import explained, open_parquet
from vla_ft.data.formats.snappy_blocks import BLOCK, find_blocks, with_size
from vla_ft.data.formats.thrift_compact import read_struct

PAGE_FIELDS = ("offset", "stored", "size", "codec", "first_block")
"""Columns of a page table, int64: where its values begin in the file, how many bytes they have there and decompressed,
the codec, and its first entry in the table of blocks (-1: only the whole page can be decompressed)."""
_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 3, "ZSTD": 4}
_CODEC_NAMES = (None, "snappy", "gzip", "brotli", "zstd")
_SNAPPY = 1
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_HEADER_BYTES = 1024
_MOST_BYTES = 1 << 30
"""A page beyond this is taken for a damaged header."""


@dataclass(frozen=True, kw_only=True)
class ValueIndex:
    """Where the values of a bytes column lie. ``pages`` int64 [P, PAGE_FIELDS]; ``blocks`` int64 [B], places in stored
    bytes. By row: ``page`` int32, ``offset`` int64 in the decompressed page, ``length`` int64 or -1 for none.
    """

    pages: np.ndarray
    blocks: np.ndarray
    page: np.ndarray
    offset: np.ndarray
    length: np.ndarray


def index_values(path: Path, column: str) -> ValueIndex:
    """Index a bytes column (its dotted leaf name), reading it once, a page at a time; checksums are verified.

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
        scan = _Scan(raw, described.max_definition_level)
        for group in range(file.metadata.num_row_groups):
            scan.add_chunk(file.metadata.row_group(group).column(leaf))
        index = scan.result()
        if len(index.page) != file.metadata.num_rows:
            raise ValueError(f"{column} has {len(index.page)} rows where the footer says {file.metadata.num_rows}")
        return index


def read_value(descriptor: int, page: np.ndarray, blocks: np.ndarray, offset: int, length: int) -> bytes:
    """The ``length`` bytes at ``offset`` of a decompressed page. Raises ValueError, OSError or pyarrow's errors."""
    start, stored, size, codec, first_block = (int(n) for n in page)
    if length < 0 or offset + length > size:
        raise ValueError("it holds no image bytes" if length < 0 else "a value reaches beyond its page")
    if codec == 0:
        return _pread(descriptor, length, start + offset)
    if codec != _SNAPPY or first_block < 0:
        return _decompress(_pread(descriptor, stored, start), codec, size)[offset : offset + length]
    first, last = offset // BLOCK, max(offset, offset + length - 1) // BLOCK
    begin, end = int(blocks[first_block + first]), int(blocks[first_block + last + 1])
    packed = with_size(_pread(descriptor, end - begin, start + begin), min(size, (last + 1) * BLOCK) - first * BLOCK)
    values = pa.Codec("snappy").decompress(
        packed, decompressed_size=min(size, (last + 1) * BLOCK) - first * BLOCK, asbytes=True
    )
    return values[offset - first * BLOCK : offset - first * BLOCK + length]


class _Scan:
    """Walks the pages of a column."""

    def __init__(self, raw: Any, top: int) -> None:
        self.raw, self.top = raw, top
        self.pages: list[list[int]] = []
        self.blocks: list[int] = []
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def result(self) -> ValueIndex:
        page, offset, length = (
            np.concatenate([part[i] for part in self.parts]) if self.parts else np.empty(0, np.int64) for i in range(3)
        )
        return ValueIndex(
            pages=np.array(self.pages, np.int64).reshape(-1, len(PAGE_FIELDS)),
            blocks=np.array(self.blocks, np.int64),
            page=page.astype(np.int32),
            offset=offset,
            length=length,
        )

    def add_chunk(self, chunk: Any) -> None:
        """The pages of a row group's column."""
        if chunk.compression not in _CODECS:
            raise ValueError(f"images compressed with {chunk.compression} are not read; write them with Snappy or none")
        codec = _CODECS[chunk.compression]
        offset, rows = chunk.data_page_offset, 0
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            offset = min(offset, chunk.dictionary_page_offset)
        end = offset + chunk.total_compressed_size
        dictionary: tuple[int, np.ndarray, np.ndarray] | None = None
        while rows < chunk.num_values:
            header, body = _page_header(self.raw, offset, end)
            size, stored = header[2], header[3]
            if not (0 <= size <= _MOST_BYTES and 0 <= stored <= end - body):
                raise ValueError(f"a page header at byte {offset} is damaged")
            page = _PageKind.of(header, codec)
            data = self._body(body, stored, header.get(4))
            if page.version == 0:
                dictionary = self._plain(data, body, size, page, page.values)
            else:
                self._add_page(data, body, size, page, dictionary)
                rows += page.values
            offset = body + stored
        if rows != chunk.num_values:
            raise ValueError(f"pages hold {rows} values where the footer says {chunk.num_values}")

    def _body(self, offset: int, stored: int, checksum: int | None) -> bytes:
        self.raw.seek(offset)
        data = self.raw.read(stored)
        if len(data) != stored:
            raise ValueError("the file ends inside a page")
        if checksum is not None and zlib.crc32(data) != checksum & 0xFFFFFFFF:
            raise ValueError("a page fails its checksum")
        return data

    def _add_page(
        self,
        data: bytes,
        offset: int,
        size: int,
        page: _PageKind,
        dictionary: tuple[int, np.ndarray, np.ndarray] | None,
    ) -> None:
        values, present, begin = self._split(data, size, page)
        count = int(present.sum())
        if page.encoding == _PLAIN:
            number, offsets, lengths = self._plain(data, offset, size, page, count, values, begin)
        elif dictionary is None:
            raise ValueError("a page refers to a dictionary that is not there")
        else:
            keys = _hybrid(memoryview(values)[1:], values[0], count) if count else np.empty(0, np.int64)
            number, offsets, lengths = dictionary[0], dictionary[1][keys], dictionary[2][keys]
        row_offset, row_length = np.zeros(page.values, np.int64), np.full(page.values, -1, np.int64)
        row_offset[present], row_length[present] = offsets, lengths
        self.parts.append((np.full(page.values, number), row_offset, row_length))

    def _plain(
        self,
        data: bytes,
        offset: int,
        size: int,
        page: _PageKind,
        count: int,
        values: bytes | None = None,
        begin: int = 0,
    ) -> tuple[int, np.ndarray, np.ndarray]:
        """Register a page of plain values: its number, and offset and length of each value once decompressed."""
        packed, size = data[page.levels :], size - page.levels
        values = _decompress(packed, page.codec, size) if values is None else values
        first_block = -1
        if page.codec == _SNAPPY:
            found = find_blocks(packed, size)
            if found is not None:
                first_block = len(self.blocks)
                self.blocks += found
        self.pages.append([offset + page.levels, len(packed), size, page.codec, first_block])
        offsets, lengths = _extents(values, count)
        return len(self.pages) - 1, offsets + begin, lengths

    def _split(self, data: bytes, size: int, page: _PageKind) -> tuple[bytes, np.ndarray, int]:
        """The encoded values, which rows have one, and where they begin in the decompressed page."""
        everyone = np.ones(page.values, bool)
        values, levels, begin = _decompress(data[page.levels :], page.codec, size - page.levels), b"", 0
        if not self.top:
            return values, everyone, 0
        if page.version == 2:
            levels = data[: page.levels]
        else:
            (length,) = struct.unpack_from("<I", values)
            begin = 4 + length
            levels, values = values[4:begin], values[begin:]
        return values, _hybrid(levels, self.top.bit_length(), page.values) == self.top, begin


@dataclass(frozen=True)
class _PageKind:
    """What a page's header says. ``version`` 0 is a dictionary; ``levels``: bytes of levels that are not compressed."""

    version: int
    values: int
    encoding: int
    levels: int
    codec: int

    @classmethod
    def of(cls, header: dict[int, Any], codec: int) -> _PageKind:
        if header[1] == _DATA_PAGE:
            page = cls(1, header[5][1], header[5][2], 0, codec)
        elif header[1] == _DATA_PAGE_V2:
            about = header[8]
            page = cls(2, about[1], about[4], about[5] + about[6], codec if about.get(7, True) else 0)
        elif header[1] == _DICTIONARY_PAGE:
            page = cls(0, header[7][1], header[7][2], 0, codec)
        else:
            raise ValueError(f"a page of unknown kind {header[1]}")
        if page.values < 0 or page.levels < 0 or page.levels > header[3]:
            raise ValueError("a page header has impossible sizes")
        allowed = (_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY) if page.version else (_PLAIN, _PLAIN_DICTIONARY)
        if page.encoding not in allowed:
            raise ValueError(f"images in parquet encoding {page.encoding} are not read; write them plainly")
        return page


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


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise ValueError("the file ends inside a page")
    return data


def _decompress(data: bytes, codec: int, size: int) -> bytes:
    name = _CODEC_NAMES[codec]
    if name is None or not size:
        return data if name is None else b""
    return pa.Codec(name).decompress(data, decompressed_size=size, asbytes=True)


def _extents(values: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Offset and length of each of ``count`` PLAIN values: a value is its length in four bytes, then itself."""
    offsets, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
    unpack, position, end = struct.Struct("<I").unpack_from, 0, len(values)
    for place in range(count):
        (length,) = unpack(values, position)
        offsets[place], lengths[place] = position + 4, length
        position += 4 + length
        if position > end:
            raise ValueError("a value reaches beyond its page")
    return offsets, lengths


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
