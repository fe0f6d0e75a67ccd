"""The LeRobot reader: rows and frames in any order, names, the index and its cache, processes, and every bad input."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import KEYS, KINDS, LENGTHS, SIZE, arrays_of, describe, edit_json, instruction_of, write_set

from vla_ft.config import load_run_config
from vla_ft.data.formats.lerobot import LeRobotReader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.formats.video_frames import OpenVideo, VideoFiles
from vla_ft.data.statistics import compute_statistics
from vla_ft.errors import UserError

Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four kinds of sets, not to be changed."""
    folder = tmp_path_factory.mktemp("lerobot")
    for version, images in KINDS:
        write_set(folder / f"{version}_{images}", version, images)
    return folder


@pytest.fixture
def copy_of(written: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A set of one's own."""
    return lambda name: Path(shutil.copytree(written / name, tmp_path / name))


@pytest.fixture
def reader(written: Path, tmp_path: Path, request: pytest.FixtureRequest) -> LeRobotReader:
    version, images = request.param
    return LeRobotReader(written / f"{version}_{images}", cache=tmp_path / "cache")


def read_all(reader: LeRobotReader, episode: int) -> dict[str, np.ndarray]:
    return reader.read(episode, np.arange(reader.lengths[episode]), KEYS)


def edit_parquet(path: Path, change: Edit) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_value(column: str, row: int, value: object) -> Edit:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))

    return change


every_kind = pytest.mark.parametrize("reader", KINDS, indirect=True, ids="_".join)


@every_kind
def test_what_was_written_is_read(reader: LeRobotReader) -> None:
    assert reader.lengths.tolist() == list(LENGTHS)
    assert reader.description.cameras == {"front": SIZE, "wrist": SIZE}
    assert reader.description.action_names == describe().action_names
    assert reader.description.fps == 10
    video = reader.info.features["observation.images.front"].dtype == "video"
    for episode, length in enumerate(LENGTHS):
        read, truth = read_all(reader, episode), arrays_of(episode, length, describe())
        for key in KEYS:
            assert read[key].dtype == truth[key].dtype
            if video and key.startswith("image"):
                assert np.abs(read[key].astype(int) - truth[key]).mean() < 4
            else:
                np.testing.assert_array_equal(read[key], truth[key])
        assert reader.instruction(episode) == instruction_of(episode)
        assert f"episode {episode} (" in reader.name_of(episode)


@every_kind
@pytest.mark.parametrize("steps", [[3], [0, 1, 2], [6, 2, 2, 5], [8, 8, 8], [0, 4, 8], [5, 4, 3], []])
def test_any_rows_in_any_order(reader: LeRobotReader, steps: list[int]) -> None:
    whole = read_all(reader, 2)
    some = reader.read(2, np.array(steps, dtype=np.int64), KEYS)
    for key in KEYS:
        assert some[key].shape == (len(steps), *whole[key].shape[1:])
        np.testing.assert_array_equal(some[key], whole[key][np.array(steps, dtype=np.int64)])


def test_versions_of_a_dataset_have_one_fingerprint(written: Path, tmp_path: Path) -> None:
    sets = [LeRobotReader(written / f"{v}_{i}", cache=tmp_path) for v, i in KINDS]
    assert len({s.fingerprint() for s in sets}) == 1
    other = write_set(tmp_path / "other", lengths=(7, 4, 8))
    assert LeRobotReader(other, cache=tmp_path).fingerprint() != sets[0].fingerprint()


def test_a_choice_of_cameras_and_features(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_of("v3.0_image")
    reader = open_dataset(path, cameras=["wrist"], cache=tmp_path, action_kind="joint", action_mode="delta")
    assert list(reader.description.cameras) == ["wrist"]
    assert (reader.description.action_kind, reader.description.action_mode) == ("joint", "delta")
    swapped = LeRobotReader(path, cache=tmp_path, proprio=("action",))
    assert swapped.description.proprio_names == describe().action_names
    joined = LeRobotReader(path, cache=tmp_path, proprio=("observation.state", "action"))
    both = swapped.read(0, np.arange(3), ["action"])["action"]
    width = len(describe().proprio_names)
    np.testing.assert_array_equal(joined.read(0, np.arange(3), ["proprio"])["proprio"][:, width:], both)
    assert joined.description.proprio_names[width] == f"action.{describe().action_names[0]}"
    with pytest.raises(UserError, match=r"data\.action=\[\] names no feature"):
        LeRobotReader(path, action=(), cache=tmp_path)
    with pytest.raises(UserError, match=r"Unknown camera 'wrst'\. Did you mean 'wrist'"):
        LeRobotReader(path, cameras=["wrst"], cache=tmp_path)
    with pytest.raises(UserError, match=r"Unknown feature for proprio 'state'.*data\.proprio="):
        LeRobotReader(path, proprio=("state",), cache=tmp_path)
    with pytest.raises(UserError, match="Unknown feature 'image_front'"):
        reader.read(0, np.zeros(1, np.int64), ["image_front"])
    with pytest.raises(ValueError, match="steps"):
        reader.read(1, np.array([4]), ["action"])


def test_the_configuration_reaches_the_reader() -> None:
    config = load_run_config(["recipe=act-mock", "data.path=x", "data.proprio=[state]", "data.action_kind=joint"])
    assert config.data.reader_options() == {"proprio": ("state",), "action_kind": "joint"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"motors": list("uvwxyz")}, tuple("uvwxyz")),
        ({"b": 1, "a": 0, "c": 2, "f": 5, "d": 3, "e": 4}, tuple("abcdef")),
        ([list("uvwxyz")], tuple("uvwxyz")),
        (["same"] * 6, tuple(f"action_{i}" for i in range(6))),
        (["few"], tuple(f"action_{i}" for i in range(6))),
        (None, tuple(f"action_{i}" for i in range(6))),
    ],
)
def test_the_ways_in_which_names_are_written(
    copy_of: Callable[[str], Path], tmp_path: Path, names: object, expected: tuple[str, ...]
) -> None:
    path = copy_of("v3.0_image")
    edit_json(path / "meta" / "info.json", lambda info: info["features"]["action"].update(names=names))
    assert LeRobotReader(path, cache=tmp_path).description.action_names == expected


def test_cameras_by_name_and_order_of_axes(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_of("v3.0_image")

    def change(info: dict[str, Any]) -> None:
        features = info["features"]
        features["observation.image"] = {
            "dtype": "image",
            "shape": [3, 8, 10],
            "names": ["channels", "height", "width"],
        }
        features["depth"] = {"dtype": "image", "shape": [8, 10, 1], "names": None}
        features["observation.front"] = {"dtype": "image", "shape": [8, 10, 3], "names": None}

    edit_json(path / "meta" / "info.json", change)
    with pytest.raises(UserError, match=r"Known: image, observation\.front, observation\.images\.front, wrist"):
        LeRobotReader(path, cameras=["depth"], cache=tmp_path)
    assert LeRobotReader(path, cameras=["image"], cache=tmp_path).description.cameras == {"image": (8, 10)}


def test_a_task_for_each_step(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_of("v2.1_image")
    edit_parquet(path / "data/chunk-000/episode_000000.parquet", with_value("task_index", 5, 1))
    reader = LeRobotReader(path, cache=tmp_path)
    assert [reader.instruction_at(0, s) for s in (4, 5, 6)] == [instruction_of(n) for n in (0, 1, 0)]


def test_version_2_0_and_odd_tables(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    old = copy_of("v2.1_image")
    edit_json(old / "meta" / "info.json", lambda info: info.update(codebase_version="v2.0", total_tasks=7))
    (old / "meta" / "episodes_stats.jsonl").unlink()
    np.testing.assert_array_equal(read_all(LeRobotReader(old, cache=tmp_path), 2)["action"].shape, (9, 6))
    new = copy_of("v3.0_image")
    tasks = pq.read_table(new / "meta" / "tasks.parquet").rename_columns(["task_index", "__index_level_0__"])
    pq.write_table(tasks, new / "meta" / "tasks.parquet")
    table = pq.read_table(new / "meta/episodes/chunk-000/file-000.parquet")
    for number, rows in enumerate((slice(2, 3), slice(0, 2))):  # several files, out of order
        pq.write_table(
            table.slice(rows.start, rows.stop - rows.start), new / f"meta/episodes/chunk-000/file-{9 + number}.parquet"
        )
    (new / "meta/episodes/chunk-000/file-000.parquet").unlink()
    reader = LeRobotReader(new, cache=tmp_path)
    assert [reader.instruction(e) for e in range(3)] == [instruction_of(e) for e in range(3)]


@pytest.mark.parametrize("version", ["v1.6", "v3.1", None])
def test_other_versions_are_refused_by_name(copy_of: Callable[[str], Path], version: str | None) -> None:
    path = copy_of("v3.0_image")
    edit_json(path / "meta" / "info.json", lambda info: info.update(codebase_version=version))
    with pytest.raises(UserError, match=rf"version {version}, and supported are v2\.0, v2\.1, v3\.0: convert"):
        open_dataset(path)


def test_the_index_is_kept_and_renewed(
    copy_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = copy_of("v3.0_image"), tmp_path / "cache"
    first = LeRobotReader(path, cache=cache)
    assert first.index.folder is not None
    with monkeypatch.context() as patch:
        patch.setattr("vla_ft.data.formats.lerobot_index.read_numbers", None)  # not called: nothing is read again
        again = LeRobotReader(path, cache=cache)
    assert again.index.folder == first.index.folder
    np.testing.assert_array_equal(read_all(again, 1)["image_front"], read_all(first, 1)["image_front"])

    (first.index.folder / "action.npy").write_bytes(b"damaged")
    mended = LeRobotReader(path, cache=cache)
    np.testing.assert_array_equal(read_all(mended, 0)["action"], arrays_of(0, 7, describe())["action"])

    file = sorted((path / "data").rglob("*.parquet"))[0]
    edit_parquet(file, with_value("action", 0, [9.0] * 6))
    changed = LeRobotReader(path, cache=cache)
    assert read_all(changed, 0)["action"][0].tolist() == [9.0] * 6
    assert changed.fingerprint() != first.fingerprint()
    assert [p.name for p in (cache / "lerobot").iterdir()] == [changed.index.folder.name]  # type: ignore[union-attr]


def test_without_a_place_for_the_index(written: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    reader = LeRobotReader(written / "v3.0_image", cache=blocker)
    assert reader.index.folder is None
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(read_all(copy, 2)["image_wrist"], arrays_of(2, 9, describe())["image_wrist"])


def test_a_failing_disk_is_not_taken_for_damage(
    copy_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = copy_of("v2.1_image")
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", fail)
        with pytest.raises(UserError, match="Input/output error"):
            LeRobotReader(path, cache=tmp_path / "cache")
    assert LeRobotReader(path, cache=tmp_path / "cache").damage == {}


def digest(reader: LeRobotReader, results: Any) -> None:
    results.put([{k: int(v.astype(np.float64).sum() * 1000) for k, v in read_all(reader, e).items()} for e in range(3)])


@every_kind
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_other_processes(reader: LeRobotReader, method: str) -> None:
    read_all(reader, 0)  # files are open here when the process starts
    assert len(pickle.dumps(reader)) < 20_000
    context = multiprocessing.get_context(method)
    here, there = context.Queue(), context.Queue()
    process = context.Process(target=digest, args=(reader, there))
    process.start()
    seen = there.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0
    digest(reader, here)
    assert here.get(timeout=10) == seen


def videos_open() -> int:
    links = [os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.islink(link.path)]
    return sum(link.endswith(".mp4") for link in links)


def test_open_videos_are_bounded(written: Path, tmp_path: Path) -> None:
    gc.collect()
    before = videos_open()
    reader = LeRobotReader(written / "v2.1_video", cache=tmp_path, open_files=2)
    for _ in range(2):
        for episode in range(3):
            read_all(reader, episode)
            assert len(reader._videos) <= 2
            assert videos_open() <= before + 2
    reader.close()
    assert videos_open() == before
    assert read_all(reader, 0)["image_front"].shape == (7, *SIZE, 3)


def test_frames_by_exact_time(written: Path) -> None:
    path = next((written / "v2.1_video").rglob("*front/episode_000002.mp4"))
    files = VideoFiles()
    whole = files.frames(path, np.arange(9) / 10, SIZE)
    for times in ([0.8, 0.8], [0.3], [0.5, 0.6, 0.8], [0.00009], [0.1]):
        frames = files.frames(path, np.array(times), SIZE)
        np.testing.assert_array_equal(frames, whole[np.round(np.array(times) * 10).astype(int)])
    for time, message in (
        (0.05, r"no frame at 0\.0500 s; the nearest found is at 0\.1000"),
        (0.95, r"no frame at 0\.9500 s; the nearest found is at 0\.8000"),
    ):
        with pytest.raises(UserError, match=message):
            files.frames(path, np.array([time]), SIZE)
    with pytest.raises(UserError, match="expected \\(8, 8\\)"):
        files.frames(path, np.array([0.0]), (8, 8))


def test_frames_of_a_window_are_decoded_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next((written / "v2.1_video").rglob("*front/episode_000002.mp4"))
    seeks = []
    monkeypatch.setattr(
        OpenVideo, "_seek", lambda self, time, old=OpenVideo._seek: (seeks.append(time), old(self, time))
    )
    VideoFiles().frames(path, np.array([0.2, 0.3]), SIZE)
    assert len(seeks) == 1


INFO = "meta/info.json"
ONE = "data/chunk-000/episode_000001.parquet"
CAMERA = "observation.images.front"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def info(**change: object) -> Callable[[Path], object]:
    return lambda path: edit_json(path / INFO, lambda content: content.update(change))


def one(change: Edit) -> Callable[[Path], object]:
    return lambda path: edit_parquet(path / ONE, change)


def front(path: Path) -> Path:
    return next(path.rglob("*front/episode_000001.mp4"))


def picture(value: bytes | None) -> Callable[[Path], object]:
    return one(with_value(CAMERA, 2, {"bytes": value, "path": "x"}))


Harm = tuple[str, str, Callable[[Path], object], str]
WHOLE: list[Harm] = [
    ("v3.0_image", "open", lambda p: (p / INFO).write_text("{"), "Cannot read .*info.json"),
    ("v3.0_image", "open", lambda p: edit_json(p / INFO, lambda i: i.pop("fps")), "info.json is damaged: KeyError"),
    ("v3.0_image", "open", info(fps=0), "fps is 0"),
    ("v3.0_image", "open", info(data_path="data/{x}"), "is damaged: KeyError"),
    ("v3.0_video", "open", info(video_path=None), "video_path is null"),
    ("v3.0_image", "open", info(total_episodes=4), "has 3 episodes, but info.json says 4"),
    ("v2.1_image", "open", info(total_frames=21), "has 20 steps, but info.json says 21"),
    ("v3.0_image", "open", lambda p: (p / "meta/tasks.parquet").unlink(), "tasks.parquet: it does not exist"),
    ("v3.0_image", "open", lambda p: shutil.rmtree(p / "meta/episodes"), "No table of episodes"),
    ("v2.1_image", "open", lambda p: (p / "meta/episodes.jsonl").write_text("[1]\n"), "line 1 is no JSON object"),
    ("v2.1_image", "open", lambda p: (p / "meta/tasks.jsonl").write_text(""), "names no task"),
]
PART: list[Harm] = [
    ("v2.1_image", "read", lambda p: (p / ONE).unlink(), "episode_000001.parquet: it does not exist"),
    ("v2.1_image", "read", lambda p: truncate(p / ONE), "Expected a whole parquet file"),
    ("v2.1_video", "read", lambda p: truncate(front(p)), r"image_front at steps .* of episode 1 .*episode_000001.mp4"),
    ("v2.1_video", "read", lambda p: front(p).unlink(), "it does not exist"),
    ("v2.1_image", "read", one(lambda t: t.slice(1)), "has 3 rows where the table of episodes says 4"),
    ("v2.1_image", "read", one(lambda t: t.drop_columns(["action"])), "has no column 'action'"),
    ("v2.1_image", "read", one(with_value("frame_index", 2, 7)), "has frame_index 7 at step 2, expected 2"),
    ("v2.1_image", "read", one(with_value("timestamp", 2, 0.25)), r"timestamp 0.2500 s at step 2, expected 0.2000 s"),
    ("v2.1_image", "read", one(with_value("task_index", 3, 5)), "has task_index 5 at step 3"),
    ("v2.1_image", "read", one(with_value("episode_index", 3, 2)), "has 3 rows"),
    ("v2.1_image", "read", picture(None), "it holds no image bytes"),
    ("v2.1_image", "read", picture(b"xx"), "image_front at steps .* of episode 1 "),
]


@pytest.mark.parametrize(("name", "when", "harm", "message"), WHOLE + PART)
def test_damage_is_named(
    copy_of: Callable[[str], Path], tmp_path: Path, name: str, when: str, harm: Callable[[Path], object], message: str
) -> None:
    path = copy_of(name)
    harm(path)
    if when == "open":
        with pytest.raises(UserError, match=message):
            LeRobotReader(path, cache=tmp_path / "cache")
        return
    reader = LeRobotReader(path, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=message):
        read_all(reader, 1)
    for whole in (0, 2):  # the other episodes are as they were
        truth = arrays_of(whole, LENGTHS[whole], describe())
        np.testing.assert_array_equal(read_all(reader, whole)["action"], truth["action"])


def test_wrong_index_and_nan(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_of("v3.0_video")
    file = sorted((path / "data").rglob("*.parquet"))[0]
    edit_parquet(file, with_value("index", 1, 5))
    reader = LeRobotReader(path, cache=tmp_path)
    with pytest.raises(UserError, match=r"episode 0 has index 5 at step 1, expected 1"):
        read_all(reader, 0)
    edit_parquet(file, with_value("index", 1, 1))
    edit_parquet(file, with_value("action", 3, [0.0, float("nan"), 0.0, 0.0, 0.0, 0.0]))
    with pytest.raises(UserError, match=r"episode 0 \(.*\): action 'joint_1' at step 3 is nan"):
        compute_statistics(LeRobotReader(path, cache=tmp_path), range(3))


def test_an_image_of_another_size(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy_of("v3.0_image")
    edit_json(path / INFO, lambda i: i["features"][CAMERA].update(shape=[16, 48, 3]))
    with pytest.raises(UserError, match="32 x 48 pixels, expected 16 x 48"):
        read_all(LeRobotReader(path, cache=tmp_path), 0)


def test_info_without_numbers(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("v3.0_image")
    (path / INFO).write_text(json.dumps([]))
    with pytest.raises(UserError, match=r"info\.json holds a list, expected .*; copy it again"):
        LeRobotReader(path)
