"""Rows, frames, windows, tasks, episode tables and statistics equal those of LeRobot's own reader (0.6.1 and 0.3.3)."""

from __future__ import annotations

import json
from pathlib import Path

import golden_files
import numpy as np
import pytest
from golden_files import Golden

from vla_ft.data.formats.lerobot import LeRobotReader
from vla_ft.data.formats.lerobot_statistics import Aggregate
from vla_ft.data.statistics import compute_statistics
from vla_ft.data.windows import WindowIndex, WindowSpec, build_sample

FOLDERS = "lerobot_dataset/*"
pytestmark = pytest.mark.golden_files(FOLDERS)
NUMBERS = {"action": "action", "observation.state": "proprio"}


@pytest.fixture
def expected(golden_root: Path, golden_case: str) -> Golden:
    """The converted folder has the same rows and frames as the one that it was converted from."""
    return golden_files.load(golden_root, f"{golden_case.removesuffix('_converted_v30')}_expected")


@pytest.fixture
def reader(golden_root: Path, golden_case: str, tmp_path: Path) -> LeRobotReader:
    return LeRobotReader(golden_root / golden_case, cache=tmp_path)


@pytest.fixture
def index(reader: LeRobotReader) -> WindowIndex:
    return WindowIndex(reader.lengths, np.arange(len(reader.lengths)))


def whole(reader: LeRobotReader, key: str) -> np.ndarray:
    return np.concatenate([reader.read(e, np.arange(n), [key])[key] for e, n in enumerate(reader.lengths)])


def test_description_and_episodes(reader: LeRobotReader, expected: Golden) -> None:
    facts = expected.facts
    assert reader.lengths.tolist() == [e["length"] for e in facts["episodes"]]
    assert reader.lengths.sum() == facts["num_frames"]
    assert reader.description.fps == facts["fps"]
    assert [f"observation.images.{c}" for c in reader.description.cameras] == facts["camera_keys"]
    assert reader.description.action_names == reader.description.proprio_names
    assert (reader.description.action_kind, reader.description.action_mode) == ("unknown", "unknown")
    for episode, row in enumerate(facts["episodes"]):
        assert [reader.instruction(episode)] == row["tasks"]
    assert reader.damage == {}


def test_numbers_are_exact(reader: LeRobotReader, expected: Golden) -> None:
    for feature, key in NUMBERS.items():
        np.testing.assert_array_equal(whole(reader, key), expected[f"col.{feature}"].numpy())
    np.testing.assert_array_equal(reader.index.array("timestamp"), expected["col.timestamp"].numpy())
    np.testing.assert_array_equal(reader.index.array("task"), expected["col.task_index"].numpy())


def test_tasks_of_every_step(reader: LeRobotReader, expected: Golden, index: WindowIndex) -> None:
    seen = [reader.instruction_at(*index.locate(i)) for i in range(len(index))]
    assert seen == expected.facts["tasks_by_frame"]


def test_frames_are_exact(reader: LeRobotReader, expected: Golden, index: WindowIndex) -> None:
    names = [name for name in expected.tensors if name.startswith("frame.")]
    assert names
    for name in names:
        _, place, feature = name.split(".", 2)
        key = "image_" + feature.removeprefix("observation.images.")
        episode, step = index.locate(int(place))
        frame = reader.read(episode, np.array([step]), [key])[key][0]
        np.testing.assert_array_equal(frame.transpose(2, 0, 1), expected[name].numpy(), err_msg=name)


def test_windows_and_their_padding(reader: LeRobotReader, expected: Golden, index: WindowIndex) -> None:
    window = expected.facts["window"]
    spec = WindowSpec(observation_steps=2, action_horizon=len(window["action_deltas"]))
    for place in window["indices"]:
        sample = build_sample(reader, *index.locate(place), spec, ("proprio",))
        np.testing.assert_array_equal(sample["action"], expected[f"win.{place}.action"].numpy())
        np.testing.assert_array_equal(sample["action_pad_mask"], ~expected[f"win.{place}.action_is_pad"].numpy())
        if "state_deltas" in window:
            state = f"win.{place}.observation.state"
            np.testing.assert_array_equal(sample["observation"]["proprio"], expected[state].numpy())
            np.testing.assert_array_equal(sample["observation"]["pad_mask"], ~expected[f"{state}_is_pad"].numpy())


def test_a_subset_of_episodes(reader: LeRobotReader, expected: Golden) -> None:
    if "subset_episodes" not in expected.facts:
        pytest.skip(f"{expected.name} states no subset")
    subset = WindowIndex(reader.lengths, np.array(expected.facts["subset_episodes"]))
    first = [reader.read(e, np.array([s]), ["action"])["action"][0] for e, s in map(subset.locate, range(len(subset)))]
    np.testing.assert_array_equal(np.stack(first), expected["subset.action0"].numpy())


def test_statistics(reader: LeRobotReader, expected: Golden) -> None:
    computed = compute_statistics(reader, range(len(reader.lengths)))
    for feature, key in NUMBERS.items():
        stated = expected.facts["stats"][feature]
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(getattr(computed[key], name), np.ravel(stated[name]), rtol=1e-5, atol=1e-6)
        assert computed[key].count == stated["count"][0]


def test_our_aggregation_of_the_episodes_statistics(golden_root: Path, golden_case: str, expected: Golden) -> None:
    lines = golden_root / golden_case / "meta" / "episodes_stats.jsonl"
    if not lines.is_file():
        pytest.skip(f"{golden_case} keeps its episodes' statistics in parquet")
    aggregate = Aggregate()
    for line in lines.read_text().splitlines():
        aggregate.add(json.loads(line)["stats"])
    for feature, stats in aggregate.result().items():
        for name, value in stats.items():
            np.testing.assert_allclose(value, expected.facts["stats"][feature][name], rtol=1e-9, atol=1e-12)
