"""The writers of RLDS, npz and npy: exact round trips, and the same bytes after any interruption."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from written_sets import DESCRIPTION, LENGTHS, assert_equal, make_episode, write_all

from vla_ft.data.formats.base import DatasetWriter
from vla_ft.data.formats.npy_writer import NpyWriter
from vla_ft.data.formats.npz_writer import NpzWriter
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.formats.rlds_writer import RldsWriter
from vla_ft.errors import UserError

MAKERS: dict[str, Callable[[Path], DatasetWriter]] = {
    "rlds": lambda p: RldsWriter(p, DESCRIPTION, shard_bytes=3000),
    "npz": lambda p: NpzWriter(p, DESCRIPTION),
    "npy": lambda p: NpyWriter(p, DESCRIPTION),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without the reader's index."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".index")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest) -> Callable[[Path], DatasetWriter]:
    return MAKERS[request.param]


@pytest.mark.parametrize("images", ["png", "jpeg", "raw"])
def test_round_trips(tmp_path: Path, images: str) -> None:
    tolerance = 3 if images == "jpeg" else 0
    for kind in (NpzWriter, RldsWriter)[: 1 if images == "raw" else 2]:
        writer = kind(tmp_path / kind.__name__, DESCRIPTION, images=images)
        write_all(writer)
        writer.finish()
        assert_equal(open_dataset(tmp_path / kind.__name__), tolerance)


def test_rlds_is_laid_out_as_tfds_does(tmp_path: Path) -> None:
    writer = RldsWriter(tmp_path / "out", DESCRIPTION, name="my set", version="2.0.1", shard_bytes=3000)
    write_all(writer)
    path = writer.finish()
    assert path == tmp_path / "out" / "2.0.1"
    info = json.loads((path / "dataset_info.json").read_text())
    split = info["splits"][0]
    shards = sorted(p.name for p in path.glob("*.tfrecord-*"))
    assert (info["name"], info["version"], split["name"]) == ("my_set", "2.0.1", "train")
    assert shards == [f"my_set-train.tfrecord-{i:05d}-of-{len(shards):05d}" for i in range(len(shards))]
    assert len(shards) > 1
    assert sum(map(int, split["shardLengths"])) == len(LENGTHS)
    sizes = sum(p.stat().st_size for p in path.glob("*.tfrecord-*"))
    assert int(split["numBytes"]) == sizes - 16 * len(LENGTHS)
    reader = open_dataset(path)
    raw = reader.raw(1, ["is_first", "is_last", "is_terminal", "reward", "discount"])
    assert raw["is_first"].tolist() == [True, False, False, False, False]
    assert raw["is_last"].tolist() == raw["is_terminal"].tolist() == [False, False, False, False, True]
    assert raw["reward"].tolist() == [0, 0, 0, 0, 1]
    assert raw["discount"].tolist() == [1] * 5
    assert reader.features["observation/image"].shape == (12, 16, 3)


def test_no_reader_opens_an_unfinished_set(maker: Callable, tmp_path: Path) -> None:
    writer = maker(tmp_path / "set")
    write_all(writer, 2)
    writer.close()
    with pytest.raises(UserError, match=r"looks like no known dataset|has no dataset\.json"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_going_on_gives_the_same_bytes(maker: Callable, tmp_path: Path, stop: int) -> None:
    straight = maker(tmp_path / "straight")
    write_all(straight)
    straight.finish()
    first = maker(tmp_path / "broken")
    write_all(first, stop)
    first.close()
    second = maker(tmp_path / "broken")
    assert second.done == stop
    write_all(second)
    assert second.finish() == second.finish()
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")
    third = maker(tmp_path / "broken")
    assert third.done == len(LENGTHS)
    third.finish()
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")


KILLED = """
import os, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_dataset_writers import MAKERS
from written_sets import make_episode, write_all
writer = MAKERS[{kind!r}](Path({folder!r}))
write_all(writer, 2)
def steps():
    yield from make_episode(3)[:2]
    os.kill(os.getpid(), 9)
writer.add(steps(), "never")
"""


@pytest.mark.parametrize("kind", MAKERS)
def test_a_killed_writer_leaves_whole_episodes(tmp_path: Path, kind: str) -> None:
    here = Path(__file__).parent
    code = KILLED.format(paths=[str(here), str(here.parents[1])], kind=kind, folder=str(tmp_path / "set"))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    writer = MAKERS[kind](tmp_path / "set")
    assert writer.done == 2
    write_all(writer)
    writer.finish()
    assert_equal(open_dataset(tmp_path / "set"))


@pytest.mark.parametrize("torn", [1, 7, 12, 900])
def test_a_torn_end_is_cut_off(tmp_path: Path, torn: int) -> None:
    straight, broken = MAKERS["rlds"](tmp_path / "a"), MAKERS["rlds"](tmp_path / "b")
    write_all(straight)
    write_all(broken, 2)
    broken.close()
    last = max((tmp_path / "b" / ".1.0.0.unfinished").glob("shard-*"))
    record = (straight._work / last.name).read_bytes()
    with last.open("ab") as file:
        file.write(record[: torn % len(record)])
    straight.finish()
    again = MAKERS["rlds"](tmp_path / "b")
    assert again.done == 2
    write_all(again)
    again.finish()
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_interrupted_while_finishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, broken = MAKERS["rlds"](tmp_path / "a"), MAKERS["rlds"](tmp_path / "b")
    write_all(straight)
    straight.finish()
    write_all(broken)
    real, calls = Path.rename, []

    def interrupt(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupt)
        broken.finish()
    broken.close()
    with pytest.raises(UserError, match="looks like no known dataset"):
        open_dataset(tmp_path / "b")
    again = MAKERS["rlds"](tmp_path / "b")
    assert again.done == len(LENGTHS)
    again.finish()
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_a_full_disk_drops_one_episode(maker: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = maker(tmp_path / "set")
    write_all(writer, 2)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(tmp_path / "set")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"No space left in .*goes on where it stopped"):
        patch.setattr(os, "fsync", full)
        writer.add(make_episode(2), "")
    assert contents(tmp_path / "set") == before
    write_all(writer)
    writer.finish()
    assert_equal(open_dataset(tmp_path / "set"))


def test_steps_that_do_not_fit(maker: Callable, tmp_path: Path) -> None:
    writer = maker(tmp_path / "set")
    good = make_episode(0)
    nan = {**good[1], "action": np.array([0, np.nan, 1])}
    for steps, kind, message in (
        ([], ValueError, "without steps"),
        (
            [good[0], {**good[1], "action": np.zeros(4)}],
            ValueError,
            r"step 1: action has shape \(4,\), expected \(3,\)",
        ),
        ([{**good[0], "image_wrist": good[0]["image_primary"]}], ValueError, "image_wrist is uint8"),
        ([{k: v for k, v in good[0].items() if k != "proprio"}], ValueError, "step 0 has"),
        ([good[0], nan], UserError, "action at step 1 is .*nan"),
    ):
        with pytest.raises(kind, match=message):
            writer.add(steps, "")
    assert writer.done == 0
    with pytest.raises(UserError, match="No episode was written"):
        writer.finish()
    write_all(writer)
    writer.finish()
    assert_equal(open_dataset(tmp_path / "set"))


def test_other_settings_and_other_writers_are_refused(maker: Callable, tmp_path: Path) -> None:
    writer = maker(tmp_path / "set")
    with pytest.raises(UserError, match="Another process writes to"):
        maker(tmp_path / "set")
    write_all(writer, 1)
    writer.close()
    if "jpeg" in writer.IMAGES:
        with pytest.raises(UserError, match=r"begun with other settings \(images"):
            type(writer)(tmp_path / "set", DESCRIPTION, images="jpeg")
    with pytest.raises(UserError, match=r"begun with other settings \(description"):
        type(writer)(tmp_path / "set", dataclasses.replace(DESCRIPTION, fps=3.0))
    with pytest.raises(UserError, match="Unknown image format 'gif'"):
        type(writer)(tmp_path / "other", DESCRIPTION, images="gif")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write to"):
        maker(tmp_path / "file")


def test_a_foreign_finished_dataset_is_not_adopted(tmp_path: Path) -> None:
    writer = RldsWriter(tmp_path, DESCRIPTION)
    write_all(writer)
    sidecar = writer.finish() / "vla_ft.json"
    sidecar.unlink()  # as TFDS itself writes them
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"1\.0\.0 .*was not written by this project"):
        RldsWriter(tmp_path, DESCRIPTION)
    assert contents(tmp_path) == before
