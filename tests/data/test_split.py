"""Splits by episode: disjoint, complete, deterministic, and never without training episodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_ft.data.split import split_episodes
from vla_ft.errors import UserError


@given(count=st.integers(1, 200), fraction=st.floats(0, 0.999), seed=st.integers(0, 1000))
def test_every_episode_is_on_one_side(count: int, fraction: float, seed: int) -> None:
    split = split_episodes(count, fraction=fraction, seed=seed)
    assert sorted([*split.training, *split.validation]) == list(range(count))
    assert len(split.training) >= 1
    assert np.array_equal(split.training, np.sort(split.training))
    assert abs(len(split.validation) - count * fraction) <= 1
    assert (len(split.validation) == 0) == (fraction == 0 or count == 1)


def test_the_choice_never_changes() -> None:
    """A run that resumes in a later version must hold out the same episodes."""
    assert split_episodes(20, fraction=0.2, seed=1).validation.tolist() == [0, 2, 12, 19]
    assert split_episodes(20, fraction=0.2, seed=2).validation.tolist() != [0, 2, 12, 19]


def test_lists() -> None:
    split = split_episodes(5, fraction=0.9, validation=[3, 1, 3])
    assert (split.training.tolist(), split.validation.tolist()) == ([0, 2, 4], [1, 3])
    assert split_episodes(5, validation=()).training.tolist() == [0, 1, 2, 3, 4]
    assert split.training.dtype == split.validation.dtype == np.int64


@pytest.mark.parametrize(
    ("count", "wish", "message"),
    [
        (5, {"fraction": 1.0}, "fraction is 1.0, expected"),
        (5, {"fraction": -0.1}, "fraction is -0.1, expected"),
        (5, {"validation": [5]}, "episode 5 is not in the dataset, expected 0 to 4"),
        (2, {"validation": [0, 1]}, "All 2 episodes"),
        (0, {}, "no episodes"),
    ],
)
def test_impossible_wishes(count: int, wish: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_episodes(count, **wish)
