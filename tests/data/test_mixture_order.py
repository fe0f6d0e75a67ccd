"""The order of a mixture: exact shares, every window alike, one integer for the place, nothing kept in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.mixture import epoch_quotas
from vla_ft.data.order import MixtureOrder, ShuffledOrder
from vla_ft.data.windows import TrainingPlaces, WindowIndex

mixes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=5)
seeds = st.integers(0, 2**63 - 1)


def order_of(mix: list[tuple[int, int]], seed: int) -> MixtureOrder:
    names = [f"set_{number}" for number in range(len(mix))]
    return MixtureOrder(names, [size for size, _ in mix], [quota for _, quota in mix], seed)


@settings(max_examples=60, deadline=None)
@given(mix=mixes, seed=seeds, epoch=st.integers(0, 5))
def test_every_epoch_has_exactly_its_quotas(mix: list[tuple[int, int]], seed: int, epoch: int) -> None:
    order = order_of(mix, seed)
    windows, _ = order.windows(np.arange(epoch * len(order), (epoch + 1) * len(order)))
    owners = np.searchsorted(np.cumsum([size for size, _ in mix]), windows, side="right")
    assert np.bincount(owners, minlength=len(mix)).tolist() == [quota for _, quota in mix]


@settings(max_examples=40, deadline=None)
@given(mix=mixes, seed=seeds)
def test_all_windows_of_a_dataset_are_seen_equally_often(mix: list[tuple[int, int]], seed: int) -> None:
    order = order_of(mix, seed)
    epochs = 7
    windows, turns = order.windows(np.arange(epochs * len(order)))
    start = 0
    for size, quota in mix:
        chosen = (windows >= start) & (windows < start + size)
        counts = np.bincount(windows[chosen] - start, minlength=size)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == epochs * quota
        # Each pass visits every window once; the last one may be under way.
        for turn in range(epochs * quota // size):
            assert sorted(windows[chosen & (turns == turn)] - start) == list(range(size))
        start += size


@settings(max_examples=40, deadline=None)
@given(mix=mixes, seed=seeds, cut=st.integers(0, 300))
def test_a_position_means_the_same_however_it_is_asked(mix: list[tuple[int, int]], seed: int, cut: int) -> None:
    order = order_of(mix, seed)
    whole = order.windows(np.arange(400))[0]
    one_by_one = [int(order_of(mix, seed).windows(np.array([p]))[0][0]) for p in range(cut, min(400, cut + 20))]
    assert one_by_one == whole[cut : cut + 20].tolist()


def test_seeds_and_datasets_have_orders_of_their_own() -> None:
    mix = [(1000, 1000), (1000, 1000)]
    first, second = order_of(mix, 0).windows(np.arange(2000))[0], order_of(mix, 1).windows(np.arange(2000))[0]
    assert (first == second).mean() < 0.01
    own = [first[first < 1000], first[first >= 1000] - 1000]
    assert (own[0] == own[1]).mean() < 0.02


def test_a_dataset_keeps_its_stream_when_others_join() -> None:
    alone, joined = MixtureOrder(["a"], [50], [20], 3), MixtureOrder(["a", "b"], [50, 70], [20, 5], 3)
    for epoch in range(4):
        first = alone.windows(np.arange(epoch * 20, epoch * 20 + 20))[0]
        second = joined.windows(np.arange(epoch * 25, epoch * 25 + 25))[0]
        assert sorted(first) == sorted(second[second < 50])


def test_memory_and_time_do_not_grow_with_the_data() -> None:
    order = MixtureOrder(["a", "b"], [10**11, 3], [10**11, 10**9], 0)
    tracemalloc.start()
    windows, _ = order.windows(np.array([0, 10**12, 10**17]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert ((windows >= 0) & (windows < 10**11 + 3)).all()


@pytest.mark.parametrize(
    ("steps", "weights", "expected"),
    [
        ([100, 300], [1.0, 1.0], [100, 300]),  # one pass over each
        ([100, 300], [2.0, 1.0], [200, 300]),  # the first is seen twice
        ([100, 300], [0.5, 0.25], [100, 150]),  # none of weight 1: the greatest counts as 1
        ([1000, 10], [1.0, 0.01], [999, 1]),  # never less than one sample
        ([3, 3, 3], [1.0, 0.5, 0.5], [3, 2, 1]),  # halves: the whole stays int(6.0)
        ([7], [3.0], [7]),
    ],
)
def test_quotas(steps: list[int], weights: list[float], expected: list[int]) -> None:
    assert epoch_quotas(steps, weights) == expected


@settings(max_examples=100, deadline=None)
@given(mix=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.01, 5)), min_size=1, max_size=8))
def test_quotas_follow_the_weights(mix: list[tuple[int, float]]) -> None:
    steps, weights = [n for n, _ in mix], [w for _, w in mix]
    quotas = np.array(epoch_quotas(steps, weights))
    unit = 1.0 if 1.0 in weights else max(weights)
    exact = np.array(steps) * np.array(weights) / unit
    assert quotas.min() >= 1
    assert (np.abs(quotas - exact) <= 1 + len(mix)).all()


def test_a_limit_takes_other_steps_in_each_pass_and_all_of_them_in_the_end() -> None:
    index = WindowIndex(np.array([4, 25]), np.array([0, 1]), limit=10, seed=1)
    assert len(index) == 14
    assert [index.locate(i) for i in range(4)] == [(0, i) for i in range(4)]
    places = TrainingPlaces(index, ShuffledOrder(len(index), seed=5))
    visits = np.zeros(25, dtype=int)
    for epoch in range(5):
        found = places.at(np.arange(epoch * 14, (epoch + 1) * 14))
        steps = [step for episode, step in found if episode == 1]
        np.add.at(visits, steps, 1)
        if epoch < 2:
            assert visits.max() == 1, "two passes take 20 different steps of 25"
        assert sorted(step for episode, step in found if episode == 0) == [0, 1, 2, 3]
    assert (visits == 2).all(), "50 windows of 25 steps are two of each"


@pytest.mark.parametrize(
    ("steps", "weights", "quotas"),
    [
        ([2, 2, 1, 1, 1, 1], [1, 1, 0.1, 0.1, 0.1, 0.1], [1, 1, 1, 1, 1, 1]),
        ([4, 3, 1, 1, 1, 1], [1, 1, 0.1, 0.1, 0.1, 0.1], [1, 2, 1, 1, 1, 1]),
    ],
)
def test_what_small_ones_need_comes_from_all_large_ones(
    steps: list[int], weights: list[float], quotas: list[int]
) -> None:
    assert epoch_quotas(steps, weights) == quotas


@given(mix=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([1.0, 0.01, 0.1, 0.5, 2.0])), min_size=1, max_size=9))
def test_no_quota_is_empty(mix: list[tuple[int, float]]) -> None:
    quotas = epoch_quotas([steps for steps, _ in mix], [weight for _, weight in mix])
    assert min(quotas) >= 1
