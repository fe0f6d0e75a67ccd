"""Damaged episodes of a conversion: counted and left out in every format, also those that fail when a set is opened."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from any_format import FORMATS, LENGTHS, break_episode, write_set

from vla_ft.cli import main
from vla_ft.data.convert import RECORD, ConvertConfig, convert
from vla_ft.data.formats.npz import NpzReader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.errors import UserError

KEYS = ("action", "proprio", "image_top", "image_wrist")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("episode", [0, 2])
def test_what_cannot_be_opened_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, format: str, episode: int
) -> None:
    path = write_set(tmp_path / "set", format)
    break_episode(path, format, episode)
    words = ["data", "convert", f"from={path}", f"to={tmp_path / 'out'}", "format=npz"]
    assert main(words) == 2, "without skip it is an error"
    capsys.readouterr()
    assert main([*words, "on_damage=skip"]) == 0
    said = capsys.readouterr().out
    assert f"3 episodes, 1 damaged ones left out (see {RECORD})" in said
    skipped = json.loads((tmp_path / "out" / RECORD).read_text())["skipped"]
    assert list(skipped) == [str(episode)]
    assert "has no steps" not in skipped[str(episode)], "the reason is the damage itself"
    converted, whole = open_dataset(tmp_path / "out"), open_dataset(write_set(tmp_path / "sound", format))
    left = [number for number in range(len(LENGTHS)) if number != episode]
    assert converted.lengths.tolist() == [LENGTHS[number] for number in left]
    for place, number in enumerate(left):
        steps = np.arange(LENGTHS[number])
        mine, theirs = (reader.read(n, steps, KEYS) for reader, n in ((converted, place), (whole, number)))
        assert all(np.array_equal(mine[key], theirs[key]) for key in KEYS)


def test_nothing_sound_is_an_error_and_no_set(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", "rlds", (5,))
    break_episode(path, "rlds", 0)
    config = ConvertConfig(source=str(path), target=str(tmp_path / "out"), format="npz", on_damage="skip")
    with pytest.raises(UserError, match=r"no episode to convert: 1 of 1 are damaged. The first: .*checksum"):
        convert(config, lambda line: None)
    with pytest.raises(UserError):
        open_dataset(tmp_path / "out")


def test_a_failing_disk_leaves_no_episode_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_set(tmp_path / "set", "npz")
    read = NpzReader.read

    def failing(self: NpzReader, episode: int, steps: np.ndarray, keys: list[str]) -> dict[str, np.ndarray]:
        if episode == 2:
            raise UserError("the disk fails") from OSError(errno.EIO, "input/output error")
        return read(self, episode, steps, keys)

    config = ConvertConfig(source=str(path), target=str(tmp_path / "out"), format="rlds", on_damage="skip")
    with monkeypatch.context() as patch:
        patch.setattr(NpzReader, "read", failing)
        with pytest.raises(UserError, match="the disk fails"):
            convert(config, lambda line: None)
    done = convert(config, lambda line: None)
    assert (done.episodes, done.skipped) == (4, {})


def test_errors_of_a_read_call_leave_no_episode_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_set(tmp_path / "set", "npz")
    pread = os.pread

    def failing(descriptor: int, size: int, place: int) -> bytes:
        if "episode_000001" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, size, place)

    config = ConvertConfig(source=str(path), target=str(tmp_path / "out"), format="npz", on_damage="skip")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        with pytest.raises(UserError, match="Input/output error"):
            convert(config, lambda line: None)
    assert convert(config, lambda line: None).episodes == 4
