"""What is kept of HDF5 and npz files for the next opening: used while they are the same, and only then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from any_format import LENGTHS, break_episode, write_set

from vla_ft.data.formats import aloha_index
from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.kept import cache_folder, stamp
from vla_ft.data.formats.npz import NpzReader
from vla_ft.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLA_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settle(path: Path, seconds: float = 60) -> Path:
    """As if the files had been written a while ago."""
    for file in path.iterdir():
        os.utime(file, (time.time() - seconds, time.time() - seconds))
    return path


@pytest.fixture
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, reading headers or all numbers fails the test."""

    def forbid() -> None:
        monkeypatch.setattr(aloha_index, "inspect_episode", None)
        for reader in (AlohaHdf5Reader, NpzReader):
            monkeypatch.setattr(reader, "_hash_numbers", None)

    return forbid


def facts(reader: AlohaHdf5Reader) -> list[object]:
    episodes = range(len(reader.lengths))
    said = [(reader.instruction(e), reader.name_of(e)) for e in episodes]
    return [reader.description, reader.lengths.tolist(), said, reader.action_offset, reader.damage, reader.assumed]


def test_a_set_opens_without_opening_its_files(tmp_path: Path, nothing_read: Callable[[], None]) -> None:
    path = settle(write_set(tmp_path / "set", "aloha_hdf5"))
    with h5py.File(path / "episode_3.hdf5", "r+") as file:
        file.attrs["language_instruction"] = "another"
    settle(path)
    first = AlohaHdf5Reader(path)
    print_of, numbers = first.fingerprint(), first.read(2, np.arange(3), ["action"])["action"]
    nothing_read()
    again = AlohaHdf5Reader(path)
    assert facts(again) == facts(first)
    assert again.lengths.tolist() == list(LENGTHS)
    assert again.fingerprint() == print_of
    np.testing.assert_array_equal(again.read(2, np.arange(3), ["action"])["action"], numbers)
    assert list(AlohaHdf5Reader(path, cameras=["wrist"]).description.cameras) == ["wrist"]
    assert facts(AlohaHdf5Reader(path, tolerant=True)) == facts(first)


def test_changed_added_and_removed_files_are_seen(tmp_path: Path) -> None:
    path = settle(write_set(tmp_path / "set", "aloha_hdf5"))
    prints = [AlohaHdf5Reader(path).fingerprint()]
    with h5py.File(path / "episode_1.hdf5", "r+") as file:
        file["action"][0, 0] += 1
    settle(path, 50)
    prints.append(AlohaHdf5Reader(path).fingerprint())
    (path / "episode_3.hdf5").rename(path / "episode_7.hdf5")
    assert [AlohaHdf5Reader(path).name_of(3)] == ["episode_7.hdf5"]
    prints.append(AlohaHdf5Reader(path).fingerprint())
    (path / "episode_0.hdf5").unlink()
    assert AlohaHdf5Reader(path).lengths.tolist() == list(LENGTHS[1:])
    prints.append(AlohaHdf5Reader(path).fingerprint())
    assert len(set(prints)) == 4
    assert len(list((cache_folder() / "aloha").iterdir())) == 1, "what no longer fits is removed"


def test_nothing_is_kept_of_files_that_are_being_written(tmp_path: Path, cache: Path) -> None:
    """They may change again within one tick of the file system's clock."""
    path = write_set(tmp_path / "set", "aloha_hdf5")
    AlohaHdf5Reader(path).fingerprint()
    NpzReader(write_set(tmp_path / "npz", "npz")).fingerprint()
    assert not cache.exists()


def test_damage_is_kept_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_set(tmp_path / "set", "aloha_hdf5")
    break_episode(path, "aloha_hdf5", 1)
    with h5py.File(path / "episode_2.hdf5", "r+") as file:
        del file["observations/images/wrist"]
    settle(path)
    with pytest.raises(UserError, match=r"episode_1\.hdf5"):
        AlohaHdf5Reader(path)
    first = AlohaHdf5Reader(path, tolerant=True)
    assert "episode_2.hdf5 has pictures of camera wrist: none, but 2 of the 4 episodes have 32 x 40" in first.damage[2]
    monkeypatch.setattr(aloha_index, "inspect_episode", None)
    assert facts(AlohaHdf5Reader(path, tolerant=True)) == facts(first)
    with pytest.raises(UserError, match=r"episode_1\.hdf5"):
        AlohaHdf5Reader(path)
    assert list(AlohaHdf5Reader(path, tolerant=True, cameras=["top"]).damage) == [1]


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_damaged_index_is_made_again(tmp_path: Path, cache: Path, content: bytes | None) -> None:
    path = settle(write_set(tmp_path / "set", "aloha_hdf5"))
    first = AlohaHdf5Reader(path)
    wanted = first.fingerprint()
    for kept in [*(cache / "aloha").iterdir(), *(cache / "fingerprints").iterdir()]:
        whole = kept.read_bytes()
        kept.write_bytes(whole[: len(whole) // 2] if content is None else content)
    again = AlohaHdf5Reader(path)
    assert (facts(again), again.fingerprint()) == (facts(first), wanted)


def test_npz_numbers_are_read_for_their_fingerprint_once(tmp_path: Path, nothing_read: Callable[[], None]) -> None:
    path = settle(write_set(tmp_path / "set", "npz"))
    wanted = NpzReader(path).fingerprint()
    nothing_read()
    assert NpzReader(path).fingerprint() == wanted


def test_a_missing_file_is_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert stamp(tmp_path, ["a", "b"]).identity != stamp(tmp_path, ["a"]).identity
    before = stamp(tmp_path, ["a", "b"]).identity
    (tmp_path / "b").write_text("x")
    assert stamp(tmp_path, ["a", "b"]).identity != before
