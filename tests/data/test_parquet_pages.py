"""Values out of parquet pages: every way in which pyarrow writes a column of bytes, and damage."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_ft.data.formats.parquet_pages import index_values, read_value
from vla_ft.data.formats.snappy_blocks import BLOCK, find_blocks, with_size
from vla_ft.errors import UserError

WAYS: list[dict[str, Any]] = [
    {},
    {"use_dictionary": False},
    {"compression": "NONE"},
    {"compression": "zstd", "data_page_version": "2.0"},
    {"compression": "gzip", "use_dictionary": False},
    {"compression": "brotli", "dictionary_pagesize_limit": 5000},
    {"data_page_version": "2.0", "use_dictionary": False},
    {"write_page_checksum": True, "write_batch_size": 4, "data_page_size": 30_000, "use_dictionary": False},
    {"write_page_checksum": True, "dictionary_pagesize_limit": 200_000, "write_batch_size": 4},
]


def values(rng: np.random.Generator, count: int = 60) -> list[bytes | None]:
    """Noise and repetitions, empty and missing values, some larger than a block."""
    made: list[bytes | None] = [rng.bytes(int(rng.integers(40_000))) for _ in range(count)]
    made[3], made[7], made[8], made[20], made[21] = None, b"", None, b"ab" * 100_000, rng.bytes(2 * BLOCK + 1)
    made[30] = made[31] = made[10]
    return made


def write(path: Path, data: list[bytes | None], **options: Any) -> None:
    column = pa.StructArray.from_arrays([pa.array(data, pa.binary()), pa.array(["x"] * len(data))], ["bytes", "path"])
    numbers = pa.array(np.arange(len(data)))
    pq.write_table(pa.table({"n": numbers, "image": column}), path, **{"row_group_size": 25, **options})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(f"{k}={v}" for k, v in way.items()) or "default")
def test_every_value(tmp_path: Path, way: dict[str, Any]) -> None:
    data = values(np.random.default_rng(0))
    write(tmp_path / "x.parquet", data, **way)
    index = index_values(tmp_path / "x.parquet", "image.bytes")
    descriptor = os.open(tmp_path / "x.parquet", os.O_RDONLY)
    try:
        for row, expected in enumerate(data):
            place = (index.pages[index.page[row]], index.blocks, int(index.offset[row]), int(index.length[row]))
            if expected is None:
                with pytest.raises(ValueError, match="holds no image bytes"):
                    read_value(descriptor, *place)
            else:
                assert read_value(descriptor, *place) == expected
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("kind", ["noise", "zeros", "text"])
def test_snappy_blocks_stand_alone(size: int, kind: str) -> None:
    noise = np.random.default_rng(0).bytes(size)
    data = {"noise": noise, "zeros": b"\0" * size, "text": (b"the quick brown fox " * size)[:size]}[kind]
    packed = pa.Codec("snappy").compress(data, asbytes=True)
    starts = find_blocks(packed, size)
    assert starts is not None
    assert len(starts) == -(-size // BLOCK) + 1
    for number, (begin, end) in enumerate(itertools.pairwise(starts)):
        part = data[number * BLOCK : (number + 1) * BLOCK]
        alone = with_size(packed[begin:end], len(part))
        assert pa.Codec("snappy").decompress(alone, decompressed_size=len(part), asbytes=True) == part


def test_snappy_data_that_refers_across_blocks_is_not_cut() -> None:
    literal = bytes([61 << 2]) + (BLOCK - 1).to_bytes(2, "little") + bytes(BLOCK)
    copy = bytes([(8 - 1) << 2 | 2]) + (100).to_bytes(2, "little")
    assert find_blocks(with_size(literal + copy, BLOCK + 8), BLOCK + 8) is None
    with pytest.raises(ValueError, match="cut off"):
        find_blocks(with_size(literal, BLOCK + 8), BLOCK + 8)


def test_a_flipped_byte_fails_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, values(np.random.default_rng(0)), write_page_checksum=True, compression="NONE")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="fails its checksum"):
        index_values(path, "image.bytes")


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, values(np.random.default_rng(0)))
    with pytest.raises(UserError, match=r"no column of encoded images 'depth\.bytes'"):
        index_values(path, "depth.bytes")
    with pytest.raises(UserError, match="is INT64, expected one BYTE_ARRAY"):
        index_values(path, "n")
    options = {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}}
    write(path, values(np.random.default_rng(0)), **options)
    with pytest.raises(UserError, match="parquet encoding 6 are not read"):
        index_values(path, "image.bytes")
    write(path, values(np.random.default_rng(0)), compression="lz4")
    with pytest.raises(UserError, match="compressed with LZ4"):
        index_values(path, "image.bytes")
