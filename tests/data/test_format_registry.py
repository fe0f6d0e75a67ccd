"""Finding a dataset's format, and refusing what cannot be read in a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from any_format import FORMATS, write_set
from episode_sets import SetOnDisk

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.opening import ReadConfig
from vla_ft.errors import UserError


def test_aloha_is_recognised(aloha_set: SetOnDisk) -> None:
    assert isinstance(open_dataset(aloha_set.folder), AlohaHdf5Reader)
    assert isinstance(open_dataset(str(aloha_set.folder / "episode_1.hdf5")), AlohaHdf5Reader)
    reader = open_dataset(aloha_set.folder, format="aloha_hdf5", cameras=["wrist"], fps=10)
    assert (list(reader.description.cameras), reader.description.fps) == (["wrist"], 10)


def test_names_are_checked(aloha_set: SetOnDisk, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown dataset format 'aloha'\. Did you mean 'aloha_hdf5'"):
        open_dataset(aloha_set.folder, format="aloha")
    with pytest.raises(UserError, match="Did you mean 'instruction'"):
        open_dataset(aloha_set.folder, instructions="x")
    with pytest.raises(UserError, match="Unknown jpeg_channels"):
        open_dataset(aloha_set.folder, jpeg_channels="gbr")
    with pytest.raises(UserError, match="expected steps per second above 0"):
        open_dataset(aloha_set.folder, fps=-1)
    with pytest.raises(UserError, match=r"^Dataset not found: no dataset at .*check data\.path\.$"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^Dataset not found.*A relative path starts at /.*give an absolute one"):
        open_dataset("nowhere")


def test_folders_that_hold_nothing_known(tmp_path: Path, aloha_set: SetOnDisk) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="found nothing, expected for instance episode_"):
        open_dataset(empty)
    with pytest.raises(UserError, match="No episodes in"):
        open_dataset(empty, format="aloha_hdf5")
    (empty / "notes.txt").touch()
    with pytest.raises(UserError, match=r"found notes\.txt"):
        open_dataset(empty)
    (aloha_set.folder / "rollout_length.npy").touch()
    with pytest.raises(UserError, match="looks like aloha_hdf5 and npy"):
        open_dataset(aloha_set.folder)


def test_folders_that_look_like_a_format_and_are_not_whole(tmp_path: Path) -> None:
    shard = tmp_path / "set" / "1.0.0" / "x-train.tfrecord-00000-of-00001"
    shard.parent.mkdir(parents=True)
    shard.touch()
    with pytest.raises(UserError, match="No RLDS dataset at"):
        open_dataset(tmp_path / "set")
    (tmp_path / "episode_000000.npz").touch()
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        open_dataset(tmp_path, format="npz")


@pytest.mark.parametrize("format", FORMATS)
def test_hints_name_what_can_be_typed(tmp_path: Path, format: str) -> None:
    path = write_set(tmp_path / "set", format)
    with pytest.raises(UserError, match="Unknown option of format") as caught:
        open_dataset(path, franes=1)
    typed = {field.name for field in dataclasses.fields(ReadConfig)}
    known = str(caught.value).split("Known: ")[1].rstrip(".").split(", ")
    assert set(known) <= typed
