"""RLDS samples that read their own bytes alone: those of the whole record, checked again, never wrong in silence."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from any_format import LENGTHS, write_set

from vla_ft.data.formats import rlds_records, tfrecord
from vla_ft.data.formats.rlds import RldsReader
from vla_ft.data.formats.rlds_layouts import StoredRecord, layout_row
from vla_ft.data.formats.tf_example import parse_example, serialize_example
from vla_ft.data.windows import WindowSpec, build_sample
from vla_ft.errors import UserError

TOY = Path(__file__).parent / "files" / "rlds" / "toy_arm"
KEYS = ("action", "proprio", "image_top", "image_wrist")
SHARD = "tiny_set-train.tfrecord-00000-of-00001"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", "rlds")


def sample(reader: RldsReader, episode: int, step: int = 0) -> dict[str, np.ndarray]:
    return build_sample(reader, episode, step, WindowSpec(action_horizon=3), KEYS[1:])["observation"]


@pytest.fixture
def whole_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the records that were read whole."""
    found: list[int] = []
    read = tfrecord.masked_crc
    monkeypatch.setattr(tfrecord, "masked_crc", lambda data: found.append(len(data)) or read(data))
    return found


def test_every_leaf_in_pieces_is_that_of_the_record(tmp_path: Path) -> None:
    shutil.copytree(TOY, tmp_path / "toy")
    reader = RldsReader(tmp_path / "toy", action=(), fps=5, split="all")
    names = [name for name, spec in reader.features.items() if spec.kind != "other"]
    whole = [reader.raw(episode, names) for episode in range(len(reader.lengths))]
    for episode, wanted in enumerate(whole):
        pieces = reader.raw(episode, names)
        assert isinstance(reader._last[1], StoredRecord)  # type: ignore[index]
        for name in names:
            for mine, theirs in zip(pieces[name].reshape(-1), wanted[name].reshape(-1), strict=True):
                assert np.array_equal(mine, theirs), (episode, name)


def test_a_long_list_is_read_at_the_steps_that_are_asked_for() -> None:
    pictures = [bytes([number]) * (3000 + number) for number in range(20)]
    numbers = np.arange(40, dtype=np.float32)
    record = serialize_example({"steps/image": pictures, "steps/action": numbers, "steps/text": [b"go"] * 20})
    names: dict[str, int] = {}
    row = layout_row(parse_example(record), names)
    asked: list[int] = []

    def fetch(begin: int, size: int) -> bytes:
        asked.append(size)
        return record[begin : begin + size]

    stored = StoredRecord(row, list(names), fetch)
    assert stored["steps/image"].bytes_at([7, 3]) == [pictures[7], pictures[3]]
    assert asked == [3007, 3003]
    assert stored["steps/action"].floats().tolist() == numbers.tolist()
    assert stored["steps/text"].count() == 20 and stored["steps/image"].count() == 20
    assert len(asked) == 4, "what was read stays"
    assert sum(asked[2:]) < 300
    with pytest.raises(ValueError, match="expected float"):
        stored["steps/image"].floats()
    assert "steps/other" not in stored and set(stored) == set(names)


def test_a_record_is_checked_at_first_and_again_after_as_many_samples_as_it_has_steps(
    folder: Path, whole_reads: list[int]
) -> None:
    reader = RldsReader(folder)
    whole_reads.clear()
    for _ in range(LENGTHS[1]):
        sample(reader, 1)
        sample(reader, 0)
    assert len(whole_reads) == 2
    sample(reader, 1)
    assert len(whole_reads) == 3
    content = bytearray((folder / SHARD).read_bytes())
    content[int(reader._index.offset[1] + reader._index.size[1]) - 1] ^= 1  # of a list that no sample uses
    (folder / SHARD).write_bytes(content)
    for _ in range(LENGTHS[1] - 1):
        sample(reader, 0)
        sample(reader, 1)
    sample(reader, 0)
    with pytest.raises(UserError, match="record 1 is damaged: the checksum"):
        sample(reader, 1)


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "shifted"])
def test_layouts_are_a_cache(folder: Path, damage: str, whole_reads: list[int]) -> None:
    first = RldsReader(folder)
    wanted = [sample(first, episode, 2) for episode in range(4)]
    (layouts,) = folder.glob(".layouts-train-*.bin")
    content = layouts.read_bytes()
    changed = {"cut": content[:100], "other": bytes(len(content)), "shifted": content[8:] + content[:8]}
    if damage == "gone":
        layouts.unlink()
    else:
        layouts.write_bytes(changed[damage])
    reader = RldsReader(folder)
    whole_reads.clear()
    for _ in range(3):
        for episode in range(4):
            read = sample(reader, episode, 2)
            assert all(np.array_equal(read[key], wanted[episode][key]) for key in wanted[episode])
    assert len(whole_reads) == 12, "what does not fit is not used"


def test_layouts_that_vanish_on_the_way(folder: Path, whole_reads: list[int]) -> None:
    reader = RldsReader(folder)
    first = [sample(reader, episode) for episode in (0, 1)]
    (layouts,) = folder.glob(".layouts-train-*.bin")
    os.truncate(layouts, 0)
    whole_reads.clear()
    again = [sample(reader, episode) for episode in (0, 1)]
    assert len(whole_reads) == 2
    assert all(np.array_equal(a[key], b[key]) for a, b in zip(first, again, strict=True) for key in a)


def test_a_shard_that_is_cut_on_the_way_is_named(folder: Path) -> None:
    reader = RldsReader(folder)
    for episode in (3, 0):
        sample(reader, episode)
    os.truncate(folder / SHARD, int(reader._index.offset[3]) + 10)
    with pytest.raises(UserError, match=r"record 3 is damaged: the file ends \d+ bytes too early"):
        sample(reader, 3)


def trusted(reader: RldsReader, queue: multiprocessing.Queue) -> None:
    sample(reader, 0)
    queue.put(int((reader._records._trusted > 0).sum()))


def test_every_process_checks_for_itself(folder: Path) -> None:
    reader = RldsReader(folder)
    for episode in (0, 1, 2):
        sample(reader, episode)
    assert (reader._records._trusted > 0).sum() == 3
    assert not pickle.loads(pickle.dumps(reader))._records._trusted.any()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=trusted, args=(reader, queue))
    child.start()
    assert queue.get(timeout=60) == 1
    child.join()


def test_old_layouts_are_removed_and_a_full_place_is_survived(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    RldsReader(folder)
    (old,) = folder.glob(".layouts-train-*.bin")
    os.utime(folder / SHARD, (1, 1))
    reader = RldsReader(folder)
    (new,) = folder.glob(".layouts-train-*.bin")
    assert new != old
    wanted = sample(reader, 1)
    for path in folder.glob(".*"):
        path.unlink()

    def refuse(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rlds_records.os, "replace", refuse)
    with pytest.warns(UserWarning, match="samples cost their whole record"):
        reader = RldsReader(folder)
    for _ in range(2):
        read = sample(reader, 1)
        sample(reader, 0)
        assert all(np.array_equal(read[key], wanted[key]) for key in wanted)
    assert not list(folder.glob(".*")) and not list((tmp_path / "cache").rglob("*.*"))
