"""The LeRobot writer: interrupted anywhere it goes on to the same bytes, files roll over, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_sets import KEYS, KINDS, LENGTHS, arrays_of, describe, instruction_of, open_writer, steps_of, write_set

from vla_ft.data.formats.lerobot import LeRobotReader
from vla_ft.data.formats.lerobot_writer import LeRobotWriter
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.formats.video_encoding import VideoEncoder, choose_encoder
from vla_ft.errors import UserError

kinds = pytest.mark.parametrize(("version", "images"), KINDS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def go_on(folder: Path, version: str, images: str) -> Path:
    writer = open_writer(folder, version, images)
    for episode in range(writer.done, len(LENGTHS)):
        writer.add(steps_of(episode, LENGTHS[episode], describe()), instruction_of(episode))
    return writer.finish()


def finishes_within(calls: int, patch: pytest.MonkeyPatch, folder: Path, version: str, images: str) -> bool:
    """Whether a set is written before the file system was asked ``calls`` times to make something last."""
    left = iter(range(calls))

    def counted(old: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if next(left, None) is None:
                raise Killed
            return old(*arguments, **options)

        return call

    for name in ("replace", "rename", "fsync"):
        patch.setattr(os, name, counted(getattr(os, name)))
    try:
        go_on(folder, version, images)
    except Killed:
        return False
    return True


class Killed(BaseException):
    """Stands for a kill: no handler of the writer catches it as an error."""


@kinds
def test_the_same_bytes_whatever_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, images: str
) -> None:
    whole = contents(write_set(tmp_path / "whole", version, images))
    assert "meta/info.json" in whole
    assert not any(name.startswith(".") for name in whole)
    stops = 0
    while True:
        folder = tmp_path / f"stopped_{stops}"
        with monkeypatch.context() as patch:
            if finishes_within(stops, patch, folder, version, images):
                break
        if not (folder / "meta" / "info.json").exists():
            with pytest.raises(UserError):
                open_dataset(folder)
        assert contents(go_on(folder, version, images)) == whole
        stops += 5  # some of the places; they are many
    assert stops > 15


KILLED = """
    import sys
    from pathlib import Path
    from lerobot_sets import LENGTHS, describe, instruction_of, open_writer, steps_of
    writer = open_writer(Path(sys.argv[1]), "v3.0", "video")
    for episode in range(writer.done, len(LENGTHS)):
        for step, row in enumerate(steps_of(episode, LENGTHS[episode], describe())):
            print("step", flush=True)
        writer.add(steps_of(episode, LENGTHS[episode], describe()), instruction_of(episode))
"""


def test_kill_9_loses_one_episode_at_most(tmp_path: Path) -> None:
    whole = contents(write_set(tmp_path / "whole", "v3.0", "video"))
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    for _ in range(LENGTHS[0] + 2):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    writer = open_writer(folder, "v3.0", "video")
    assert writer.done >= 1
    writer.close()
    assert contents(go_on(folder, "v3.0", "video")) == whole


def test_files_roll_over(tmp_path: Path) -> None:
    path = write_set(tmp_path / "x", "v3.0", "image", lengths=(6,) * 7, data_megabytes=0.012, chunks_size=2)
    names = sorted(str(p.relative_to(path / "data")) for p in (path / "data").rglob("*.parquet"))
    assert len(names) > 2
    assert {"chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"} <= set(names)
    one = write_set(tmp_path / "one", "v3.0", "video", lengths=(6,) * 7, data_megabytes=100, video_megabytes=100)
    assert len(list((one / "videos").rglob("*.mp4"))) == 2
    for folder in (path, one):
        reader = LeRobotReader(folder, cache=tmp_path / "cache")
        for episode in range(7):
            read = reader.read(episode, np.arange(6), KEYS)
            np.testing.assert_array_equal(read["action"], arrays_of(episode, 6, describe())["action"])
            assert np.abs(read["image_front"].astype(int) - arrays_of(episode, 6, describe())["image_front"]).mean() < 4


@kinds
def test_the_tables_are_lerobots(tmp_path: Path, version: str, images: str) -> None:
    path = write_set(tmp_path / "x", version, images)
    info = json.loads((path / "meta" / "info.json").read_text())
    assert info["codebase_version"] == version
    assert info["splits"] == {"train": "0:3"}
    assert list(info["features"])[-5:] == ["timestamp", "frame_index", "episode_index", "index", "task_index"]
    file = sorted((path / "data").rglob("*.parquet"))[0]
    described = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert described["action"]["_type"] == ("List" if version == "v3.0" else "Sequence")
    assert ("observation.images.front" in described) == (images == "image")
    if version == "v3.0":
        pandas = json.loads(pq.read_schema(path / "meta" / "tasks.parquet").metadata[b"pandas"])
        assert pandas["index_columns"] == ["task"]
        stats = json.loads((path / "meta" / "stats.json").read_text())
    else:
        line = (path / "meta" / "episodes_stats.jsonl").read_text().splitlines()[0]
        stats = json.loads(line)["stats"]
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    assert np.shape(stats["action"]["count"]) == (1,)
    assert ("q99" in stats["action"]) == (version == "v3.0")


def test_encoders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = open_writer(tmp_path / "a", "v3.0", "video").encoder
    assert chosen == choose_encoder()
    assert open_writer(tmp_path / "b", "v3.0", "image").encoder is None
    path = write_set(tmp_path / "c", "v3.0", "video", codec="libx264")
    info = json.loads((path / "meta" / "info.json").read_text())
    assert info["features"]["observation.images.front"]["info"]["video.codec"] == "h264"
    reader = LeRobotReader(path, cache=tmp_path / "cache")
    for episode, length in enumerate(LENGTHS):
        frames = reader.read(episode, np.arange(length), ["image_wrist"])["image_wrist"]
        assert np.abs(frames.astype(int) - arrays_of(episode, length, describe())["image_wrist"]).mean() < 4
    with pytest.raises(UserError, match="cannot encode with libnothing"):
        choose_encoder("libnothing")


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(UserError, match="already holds something"):
        open_writer(tmp_path / "full", "v3.0", "image")
    with pytest.raises(UserError, match=r"Unknown LeRobot version to write 'v2\.0'"):
        open_writer(tmp_path / "x", "v2.0", "image")
    with pytest.raises(UserError, match="31 x 48 pixels, and video needs even numbers"):
        LeRobotWriter(tmp_path / "x", describe((31, 48)), images="video")
    with pytest.raises(UserError, match="names have no '/'"):
        LeRobotWriter(tmp_path / "x", describe(cameras=("a/b",)), images="image")
    first = open_writer(tmp_path / "x", "v3.0", "image")
    with pytest.raises(UserError, match="Another process writes to"):
        open_writer(tmp_path / "x", "v3.0", "image")
    with pytest.raises(UserError, match="Nothing was written"):
        first.finish()
    first.close()
    with pytest.raises(UserError, match=r"other settings \(video_megabytes\)"):
        open_writer(tmp_path / "x", "v3.0", "image", video_megabytes=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros(5)}, r"action must be \[6\]"),
        ({"proprio": np.full(4, np.nan)}, "finite"),
        ({"image_front": np.zeros((8, 8, 3), np.uint8)}, "expected uint8"),
    ],
)
def test_steps_that_do_not_fit_leave_nothing(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    def steps() -> Iterator[dict[str, np.ndarray]]:
        for number, step in enumerate(steps_of(0, 5, describe())):
            yield step | (change if number == 3 else {})

    writer = open_writer(tmp_path / "x", "v3.0", "video")
    with pytest.raises(ValueError, match=f"step 3: .*{message}"):
        writer.add(steps(), "x")
    with pytest.raises(ValueError, match="without steps"):
        writer.add(iter(()), "x")
    assert writer.done == 0
    assert not list(writer.plan.staging.glob("episode_*"))
    writer.add(steps_of(0, 5, describe()), "x")
    assert LeRobotReader(writer.finish(), cache=tmp_path).lengths.tolist() == [5]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(tmp_path / "x", "v3.0", "image")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"No space left in .*those before it stay"):
            writer.add(steps_of(0, 5, describe()), "x")
    writer.add(steps_of(0, 5, describe()), "x")
    assert writer.done == 1


def test_encoding_leaves_the_priority_of_this_process_alone(tmp_path: Path) -> None:
    """SVT-AV1 gives itself and its caller real-time priority where it may, as root may; children would inherit it."""
    before = os.sched_getscheduler(0)
    with VideoEncoder(tmp_path / "a.mp4", 10, (64, 64), choose_encoder()) as encoder:
        for _ in range(3):
            encoder.add(np.zeros((64, 64, 3), np.uint8))
        threads = [int(name) for name in os.listdir("/proc/self/task")]
        assert {os.sched_getscheduler(thread) for thread in threads} == {before}
    assert os.sched_getscheduler(0) == before
