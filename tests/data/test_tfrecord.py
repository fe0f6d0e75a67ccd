"""TFRecord framing: sums as TensorFlow writes them, and every way in which a file can be cut or changed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vla_ft.data.formats.tfrecord import FOOTER, HEADER, frame, masked_crc, read_payload, scan, sound_length
from vla_ft.errors import UserError

PAYLOADS = [b"first", b"", b"\x00" * 1000, bytes(range(256)) * 40]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "x.tfrecord-00000-of-00001"
    path.write_bytes(b"".join(map(frame, PAYLOADS)))
    return path


def test_masked_sums_are_those_of_the_standard() -> None:
    # RFC 3720, appendix B.4: CRC-32C of 32 zero bytes is 8a9136aa, of 32 bytes of ones 62a8ab43.
    for data, crc in ((b"\x00" * 32, 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)):
        assert masked_crc(data) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_scan_and_random_access(shard: Path) -> None:
    found = list(scan(shard))
    assert [bytes(payload) for _, payload in scan(shard)] == PAYLOADS
    for number in (2, 0, 3, 1):
        assert read_payload(shard, found[number][0]) == PAYLOADS[number]
    assert [record for record, _ in scan(shard, payloads=False)] == [record for record, _ in found]
    assert sound_length(shard) == (shard.stat().st_size, 4)


def test_every_cut_is_noticed(shard: Path) -> None:
    whole = shard.read_bytes()
    ends = [0]
    for payload in PAYLOADS:
        ends.append(ends[-1] + HEADER + len(payload) + FOOTER)
    for cut in [*range(60), 500, 1039, 1040, 1041, len(whole) - 1]:
        shard.write_bytes(whole[:cut])
        records = sum(end <= cut for end in ends) - 1
        assert sound_length(shard) == (ends[records], records)
        if cut in ends:
            assert len(list(scan(shard))) == records  # what dataset_info.json's counts are for
        else:
            with pytest.raises(UserError, match=rf"record {records} is damaged"):
                list(scan(shard))


def test_every_changed_byte_is_noticed(shard: Path) -> None:
    whole = shard.read_bytes()
    for place in range(0, HEADER + 5 + FOOTER):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        shard.write_bytes(changed)
        with pytest.raises(UserError, match=r"x\.tfrecord-00000-of-00001: record 0 is damaged: the checksum"):
            list(scan(shard))


def test_a_record_that_changes_after_it_was_indexed(shard: Path) -> None:
    record = next(scan(shard))[0]
    whole = bytearray(shard.read_bytes())
    whole[record.offset] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(UserError, match="record 7 is damaged: the checksum of its 5 bytes"):
        read_payload(shard, record, 7)
    # Another record of the same size there, itself sound, is not taken for the one that was indexed.
    shard.write_bytes(frame(b"other") + whole[HEADER + 5 + FOOTER :])
    with pytest.raises(UserError, match="checksum"):
        read_payload(shard, record)
    shard.write_bytes(whole[: record.offset + 2])
    with pytest.raises(UserError, match="the file ends 3 bytes too early"):
        read_payload(shard, record)
    shard.unlink()
    with pytest.raises(UserError, match="Cannot read"):
        read_payload(shard, record)


def test_an_impossible_length_is_refused_before_it_is_read(shard: Path) -> None:
    length = struct.pack("<Q", 1 << 62)
    shard.write_bytes(length + struct.pack("<I", masked_crc(length)) + b"x" * 100)
    with pytest.raises(UserError, match=f"it claims {1 << 62} bytes and 96 are left"):
        list(scan(shard))
