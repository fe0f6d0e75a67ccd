"""The order of samples: a permutation per epoch, uniform to the eye, and free of rank, worker and resume position."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.order import BatchPlan, shuffled


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), epoch=st.integers(0, 50), seed=st.integers(0, 2**63))
def test_every_epoch_visits_every_window_once(size: int, epoch: int, seed: int) -> None:
    indices = shuffled(np.arange(epoch * size, (epoch + 1) * size), size, seed)
    assert indices.dtype == np.int64
    assert np.array_equal(np.sort(indices), np.arange(size))


@pytest.mark.parametrize("size", [255, 256, 257, 65_535, 65_536, 65_537, 100_003])
def test_bijection_around_powers_of_two(size: int) -> None:
    assert np.array_equal(np.sort(shuffled(np.arange(size), size, 7)), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(positions=st.lists(st.integers(0, 10**12), min_size=1, max_size=40), size=st.integers(1, 10**9))
def test_a_position_does_not_depend_on_its_neighbours(positions: list[int], size: int) -> None:
    together = shuffled(np.array(positions), size, 3)
    assert ((together >= 0) & (together < size)).all()
    assert together.tolist() == [int(shuffled(np.array([p]), size, 3)[0]) for p in positions]


def test_all_permutations_of_four_are_equally_likely() -> None:
    epochs = 24_000
    table = shuffled(np.arange(epochs * 4), 4, 0).reshape(epochs, 4)
    _, counts = np.unique(table, axis=0, return_counts=True)
    assert len(counts) == 24
    # Chi-square with 23 degrees of freedom: 49.7 has probability 0.001.
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7


@pytest.mark.parametrize("size", [50, 1000, 5000])
def test_places_and_neighbours_look_uniform(size: int) -> None:
    epochs = 400
    table = shuffled(np.arange(epochs * size), size, 1).reshape(epochs, size)
    # The window at a fixed place is uniform over epochs: its mean has standard error size / sqrt(12 epochs).
    error = size / np.sqrt(12 * epochs)
    assert np.abs(table.mean(0) - (size - 1) / 2).max() < 5 * error
    # Neighbours in the order are unrelated.
    left, right = table[:, :-1].ravel(), table[:, 1:].ravel()
    assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(len(left)) + 1 / size
    # A permutation has one fixed point on average, whatever its size.
    assert 0.7 < (table == np.arange(size)).sum(1).mean() < 1.3


def test_seeds_and_epochs_differ() -> None:
    base = shuffled(np.arange(1000), 1000, 0)
    assert (base == shuffled(np.arange(1000), 1000, 1)).mean() < 0.02
    assert (base == shuffled(np.arange(1000, 2000), 1000, 0)).mean() < 0.02


def test_the_order_never_changes() -> None:
    """A checkpoint's position means the same samples in every later version."""
    assert shuffled(np.arange(20), 10, 42).tolist() == [9, 1, 0, 2, 5, 6, 7, 8, 3, 4, 1, 5, 3, 0, 2, 4, 6, 9, 8, 7]


def test_memory_does_not_depend_on_size() -> None:
    shuffled(np.arange(8), 10, 0)
    tracemalloc.start()
    shuffled(np.arange(8) + 10**15, 10**12, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("positions", [[-1], [3, -2]])
def test_impossible_orders_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="negative"):
        shuffled(np.array(positions), 5, 0)
    with pytest.raises(ValueError, match="no windows"):
        shuffled(np.array([0]), 0, 0)


def positions_of_steps(steps: int, start: int, **plan: int) -> np.ndarray:
    """[steps, global batch] of all ranks together, in rank order."""
    ranks = []
    for rank in range(plan["world"]):
        own = np.stack(list(BatchPlan(rank=rank, **plan).batches(start, steps)))
        ranks.append(own.reshape(steps, -1))
    return np.concatenate(ranks, axis=1)


@pytest.mark.parametrize(
    ("per_device", "world", "accumulation"), [(12, 1, 1), (6, 2, 1), (3, 2, 2), (1, 4, 3), (2, 3, 2)]
)
def test_any_world_size_sees_the_same_samples_per_step(per_device: int, world: int, accumulation: int) -> None:
    seen = positions_of_steps(5, 7, per_device=per_device, world=world, accumulation=accumulation)
    assert np.array_equal(seen, np.arange(7, 7 + 5 * 12).reshape(5, 12))


def test_resuming_is_constructing_at_the_position() -> None:
    plan = BatchPlan(per_device=3, world=2, rank=1, accumulation=2)
    whole = list(plan.batches(0, 6))
    rest = list(plan.batches(2 * plan.global_batch, 4))
    assert np.array_equal(np.stack(whole[4:]), np.stack(rest))
    endless = list(itertools.islice(plan.batches(0), 12))
    assert np.array_equal(np.stack(whole), np.stack(endless))


@pytest.mark.parametrize("wrong", [{"per_device": 0}, {"per_device": 1, "world": 2, "rank": 2}])
def test_impossible_plans_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        BatchPlan(**wrong)
