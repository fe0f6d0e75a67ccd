"""Executing chunks: open loop, the published average, and its online form."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ft.deployment.temporal_aggregation import OnlineEnsembler, OpenLoop, TemporalAggregation, weighted_average


def chunks(steps: int, horizon: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(steps, horizon, 2)).astype(np.float32)


def test_open_loop_asks_only_when_it_has_run_out() -> None:
    source = iter(chunks(3))
    execution = OpenLoop(2)
    actions = [execution.step(lambda: next(source)) for _ in range(5)]
    np.testing.assert_array_equal(actions, chunks(3)[[0, 0, 1, 1, 2], [0, 1, 0, 1, 0]])


def test_open_loop_never_reads_past_a_chunk() -> None:
    asked = []
    execution = OpenLoop(10)
    for _ in range(9):
        execution.step(lambda: asked.append(1) or chunks(1)[0])
    assert len(asked) == 3


@pytest.mark.parametrize("coefficient", [0.01, 0.0, -0.3])
def test_average_by_hand(coefficient: float) -> None:
    """Step 2 is predicted by chunks 0, 1 and 2 at their entries 2, 1 and 0; the oldest has weight one."""
    given = chunks(3)
    weights = np.exp(-coefficient * np.arange(3))
    expected = (given[0, 2] * weights[0] + given[1, 1] * weights[1] + given[2, 0] * weights[2]) / weights.sum()
    for execution in (TemporalAggregation(coefficient), OnlineEnsembler(coefficient)):
        actions = [execution.step(lambda c=c: c) for c in given]
        np.testing.assert_allclose(actions[2], expected, rtol=1e-6)


def test_an_exact_zero_is_a_prediction_like_any_other() -> None:
    given = np.ones((2, 3, 2), np.float32)
    given[0, 1, 0] = 0
    aggregation = TemporalAggregation(0.0)
    np.testing.assert_allclose([aggregation.step(lambda c=c: c) for c in given][1], [0.5, 1.0])


@pytest.mark.parametrize("kind", [TemporalAggregation, OnlineEnsembler, lambda: OpenLoop(3)])
def test_reset_forgets_the_episode(kind: type) -> None:
    execution = kind()
    first = [execution.step(lambda c=c: c) for c in chunks(2)]
    execution.reset()
    np.testing.assert_array_equal([execution.step(lambda c=c: c) for c in chunks(2)], first)


@pytest.mark.parametrize("kind", [TemporalAggregation, OnlineEnsembler])
def test_memory_stays_with_the_chunk(kind: type) -> None:
    """Long episodes agree with the average of the last K predictions, in batches too."""
    given = np.random.default_rng(1).normal(size=(20, 3, 4, 2))
    execution = kind(0.1)
    actions = [execution.step(lambda c=c: c) for c in given]
    last = np.stack([given[19 - age][:, age] for age in (3, 2, 1, 0)])
    np.testing.assert_allclose(actions[-1], weighted_average(last, 0.1), rtol=1e-9)
