"""Observation windows and action chunks: clamping, masks and the published reader's shift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.windows import WindowIndex, WindowSpec, build_sample
from vla_ft.errors import UserError

DESCRIPTION = DatasetDescription(
    name="numbers",
    cameras={},
    action_names=("a",),
    action_units=("rad",),
    proprio_names=("p",),
    proprio_units=("rad",),
    action_kind="joint",
    action_mode="absolute",
    gripper="none",
    fps=50.0,
)


class Numbers(EpisodeReader):
    """Step t has action 100 + t and proprio t; it refuses steps outside the episode."""

    description = DESCRIPTION

    def __init__(self, lengths: Sequence[int], offset: int = 0) -> None:
        self.lengths = np.array(lengths, dtype=np.int64)
        self.action_offset = offset

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        assert ((steps >= 0) & (steps < self.lengths[episode])).all()
        base = {"action": 100, "proprio": 0}
        return {key: (base[key] + steps[:, None]).astype(np.float32) for key in keys}

    def instruction(self, episode: int) -> str:
        return f"task {episode}"

    def fingerprint(self) -> str:
        return "numbers"

    def sources(self) -> dict[str, Path]:
        return {}

    def name_of(self, episode: int) -> str:
        return f"number {episode}"


@given(
    length=st.integers(1, 30),
    data=st.data(),
    observed=st.integers(1, 6),
    horizon=st.integers(1, 40),
    offset=st.sampled_from([0, -1]),
)
def test_windows_of_any_shape(length: int, data: st.DataObject, observed: int, horizon: int, offset: int) -> None:
    step = data.draw(st.integers(0, length - 1))
    window = WindowSpec(observation_steps=observed, action_horizon=horizon)
    sample = build_sample(Numbers([length], offset), 0, step, window, ["proprio"])
    observation = sample["observation"]

    steps = np.arange(step - observed + 1, step + 1)
    assert np.array_equal(observation["proprio"][:, 0], np.maximum(steps, 0))
    assert np.array_equal(observation["timestep"], np.maximum(steps, 0))
    assert observation["timestep"].dtype == np.int32
    assert np.array_equal(observation["pad_mask"], steps >= 0)
    assert observation["pad_mask"][-1]

    acted = max(0, step + offset) + np.arange(horizon)
    assert np.array_equal(sample["action"][:, 0], 100 + np.minimum(acted, length - 1))
    assert np.array_equal(sample["action_pad_mask"], acted < length)
    assert sample["action"].dtype == np.float32
    assert sample["action_pad_mask"].dtype == bool
    assert sample["action_pad_mask"][0]


def test_the_real_robots_shift() -> None:
    window = WindowSpec(action_horizon=3)
    first = [build_sample(Numbers([5], -1), 0, t, window, [])["action"][0, 0] for t in range(5)]
    assert first == [100, 100, 101, 102, 103]
    last = build_sample(Numbers([5], -1), 0, 4, window, [])
    assert last["action"][:, 0].tolist() == [103, 104, 104]
    assert last["action_pad_mask"].tolist() == [True, True, False]


def test_task_and_name() -> None:
    sample = build_sample(Numbers([2, 3]), 1, 0, WindowSpec(), [])
    assert (sample["task"]["language_instruction"], sample["dataset_name"]) == ("task 1", "numbers")


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_windows_are_numbered_through(lengths: list[int], data: st.DataObject) -> None:
    episodes = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True, min_size=1))
    index = WindowIndex(np.array(lengths), np.array(episodes))
    assert len(index) == sum(lengths[e] for e in episodes)
    assert [index.locate(i) for i in range(len(index))] == [(e, t) for e in episodes for t in range(lengths[e])]
    for outside in (-1, len(index)):
        with pytest.raises(IndexError):
            index.locate(outside)


def test_impossible_requests_are_refused() -> None:
    for wrong in ({"observation_steps": 0}, {"action_horizon": 0}):
        with pytest.raises(UserError, match="is impossible"):
            WindowSpec(**wrong)
    for step in (-1, 5):
        with pytest.raises(IndexError, match="number 0"):
            build_sample(Numbers([5]), 0, step, WindowSpec(), [])
    assert len(WindowIndex(np.array([4]), np.array([], dtype=int))) == 0


@settings(max_examples=30, deadline=None)
@given(length=st.integers(2, 20), limit=st.integers(1, 19), seed=st.integers(0, 99))
def test_a_pass_takes_no_step_twice(length: int, limit: int, seed: int) -> None:
    index = WindowIndex(np.array([length]), np.array([0]), limit=limit, seed=seed)
    seen = np.zeros(length, dtype=int)
    for turn in range(length):
        steps = [index.locate(number, turn)[1] for number in range(len(index))]
        assert len(set(steps)) == len(steps) == min(length, limit)
        seen[steps] += 1
    assert seen.max() == seen.min(), "as often as any other"
