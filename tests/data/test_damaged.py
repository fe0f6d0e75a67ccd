"""Damaged episodes are told by name, or left out, in every format."""

from __future__ import annotations

import errno

import h5py
import numpy as np
import pytest
from any_format import FORMATS, LENGTHS, break_episode, write_set

from vla_ft.config import DataConfig, check
from vla_ft.data.damaged import find_damaged, without_damaged
from vla_ft.data.formats.damage import damage_sentence
from vla_ft.data.statistics import check_finite, compute_statistics
from vla_ft.errors import UserError


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_episode_is_an_error_or_left_out(tmp_path, format):
    path = write_set(tmp_path / "set", format)
    whole = DataConfig(path=str(path), on_damage="skip").open(str(path))
    assert not find_damaged(whole).episodes
    assert without_damaged(whole, find_damaged(whole)) is whole
    expected = [whole.read(e, np.arange(LENGTHS[e]), ("action", "image_top")) for e in (0, 2, 3)]
    before = whole.fingerprint()
    if format == "aloha_hdf5":
        whole.close()  # HDF5 shares what it has open
    break_episode(path, format, 1)

    with pytest.raises(UserError, match=r"(?i)damaged|cannot|ends|checksum"):
        strict = DataConfig(path=str(path)).open(str(path))
        check_finite(strict, np.arange(len(strict.lengths)))

    reader = DataConfig(path=str(path), on_damage="skip").open(str(path))
    assert len(reader.lengths) == 4
    damaged = find_damaged(reader)
    assert damaged.numbers == [1] and damaged.total == 4
    assert reader.name_of(1) in str(damaged) and damaged.episodes[0].reason
    sound = without_damaged(reader, damaged)
    assert sound.lengths.tolist() == [14, 16, 12]
    for number, values in enumerate(expected):
        read = sound.read(number, np.arange(sound.lengths[number]), ("action", "image_top"))
        assert all(np.array_equal(read[key], values[key]) for key in values)
    assert [sound.instruction(e) for e in range(3)] == ["follow the square"] * 3
    assert [sound.name_of(e) for e in range(3)] == [reader.name_of(e) for e in (0, 2, 3)]
    assert compute_statistics(sound, range(3))["action"].count == 42
    again = without_damaged(DataConfig(path=str(path), on_damage="skip").open(str(path)), damaged)
    assert sound.fingerprint() == again.fingerprint()
    assert sound.fingerprint() != before


def test_numbers_that_are_not_finite_are_damage(tmp_path):
    path = write_set(tmp_path, "aloha_hdf5")
    with h5py.File(path / "episode_2.hdf5", "r+") as file:
        file["action"][3, 1] = np.nan
    reader = DataConfig(path=str(path)).open(str(path))
    (one,) = find_damaged(reader).episodes
    assert (one.episode, one.name) == (2, "episode_2.hdf5")
    assert "action 'action_1' at step 3 is nan" in one.reason


@pytest.mark.parametrize("change", ["width", "camera", "rate"])
def test_an_aloha_file_unlike_the_others_is_damage(tmp_path, change):
    path = write_set(tmp_path, "aloha_hdf5")
    with h5py.File(path / "episode_0.hdf5", "r+") as file:
        if change == "width":
            del file["action"]
            file["action"] = np.zeros((14, 5), np.float32)
        elif change == "camera":
            del file["observations/images/wrist"]
        else:
            file.attrs["fps"] = 6.0
    with pytest.raises(UserError, match="episode_0"):
        DataConfig(path=str(path)).open(str(path))
    reader = DataConfig(path=str(path), on_damage="skip").open(str(path))
    (one,) = find_damaged(reader).episodes
    wanted = {"width": "an action width 5", "camera": "pictures of camera wrist: none", "rate": r"a rate \(fps\) of 6"}
    assert one.episode == 0
    with pytest.raises(UserError, match=wanted[change]):
        reader.read(0, np.arange(1), ("action",))


def test_a_mixture_loses_the_episode_of_one_part(tmp_path):
    for name in ("left", "right"):
        write_set(tmp_path / name, "npz")
    break_episode(tmp_path / "right", "npz", 2)
    mix = {"left": {"path": "left"}, "right": {"path": "right"}}
    config = check(DataConfig, {"path": str(tmp_path), "mix": mix, "on_damage": "skip"}, "test")
    reader = config.open(str(tmp_path))
    damaged = find_damaged(reader)
    assert damaged.numbers == [6]
    assert damaged.episodes[0].name == "right: episode_000002.npz"
    sound = without_damaged(reader, damaged)
    assert sound.lengths.tolist() == [14, 11, 16, 12, 14, 11, 12]
    part, number = sound.resolve(6)
    assert (part.description.name, number, sound.name_of(6)) == ("right", 2, "right: episode_000003.npz")


def test_a_failing_disk_is_no_damage(tmp_path):
    for number, damage in ((errno.EIO, False), (errno.EACCES, False), (errno.ENOENT, True), (None, True)):
        error = UserError("cannot read")
        error.__cause__ = OSError(number, "what the system said") if number else OSError("truncated")
        if damage:
            assert damage_sentence(error) == "cannot read"
        else:
            with pytest.raises(UserError, match="cannot read"):
                damage_sentence(error)


def test_nothing_sound_is_an_error(tmp_path):
    path = write_set(tmp_path, "npz", lengths=(5, 6))
    for episode in (0, 1):
        break_episode(path, "npz", episode)
    with pytest.raises(UserError, match="All 2 episodes are damaged"):
        find_damaged(DataConfig(path=str(path), on_damage="skip").open(str(path)))
