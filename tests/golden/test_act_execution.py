"""Which action is executed: the published temporal aggregation, open loop, and LeRobot's online ensembler."""

from __future__ import annotations

import numpy as np
import pytest
from golden_files import Golden

from vla_ft.data.normalization import MeanStd
from vla_ft.deployment.temporal_aggregation import OnlineEnsembler, OpenLoop, TemporalAggregation, weighted_average

AGGREGATION = pytest.mark.golden_files("act/temporal_aggregation*")


def normalizer(golden: Golden, feature: str) -> MeanStd:
    return MeanStd(mean=golden[f"stats.{feature}_mean"].numpy(), scale=golden[f"stats.{feature}_std"].numpy())


def executed(golden: Golden, normalized: list[np.ndarray]) -> np.ndarray:
    return normalizer(golden, "action").unnormalize(np.stack(normalized))


def without_exact_zeros(predictions: np.ndarray) -> np.ndarray:
    """The published slip: a prediction with any component exactly zero counts as not made."""
    return predictions[(predictions != 0).all(axis=1)]


@AGGREGATION
def test_published_aggregation(golden: Golden) -> None:
    aggregation = TemporalAggregation(golden.facts["m"])
    actions = []
    for chunk in golden["in.chunks"].numpy():
        predictions = aggregation.predictions(chunk)
        if golden.facts["contains_exact_zero_entries"]:
            predictions = without_exact_zeros(predictions)
        actions.append(weighted_average(predictions, golden.facts["m"]))
    np.testing.assert_allclose(executed(golden, actions), golden["agg.actions"].numpy(), rtol=1e-5, atol=1e-6)


@AGGREGATION
def test_all_predictions_count_without_the_slip(golden: Golden) -> None:
    """Ours differs from the published result exactly where a zero was dropped; the online form agrees with ours."""
    chunks = golden["in.chunks"].numpy()
    table, online = TemporalAggregation(golden.facts["m"]), OnlineEnsembler(golden.facts["m"])
    ours = [table.step(lambda c=c: c) for c in chunks]
    np.testing.assert_allclose(np.stack([online.step(lambda c=c: c) for c in chunks]), np.stack(ours), rtol=1e-9)
    published = golden["agg.actions"].numpy()
    differs = ~np.isclose(executed(golden, ours), published, rtol=1e-5, atol=1e-6).all(axis=1)
    table.reset()
    seen = [table.predictions(chunk) for chunk in chunks]
    dropped = np.array([len(without_exact_zeros(p)) < len(p) for p in seen])
    assert dropped.any() == golden.facts["contains_exact_zero_entries"]
    np.testing.assert_array_equal(differs, dropped)


@AGGREGATION
def test_open_loop(golden: Golden) -> None:
    """A query every K steps; the n-th returns chunk n*K."""
    chunks, size = golden["in.chunks"].numpy(), golden.facts["chunk_size"]
    queries: list[int] = []

    def predict() -> np.ndarray:
        queries.append(len(queries) * size)
        return chunks[queries[-1]]

    execution = OpenLoop(size)
    actions = [execution.step(predict) for _ in range(golden.facts["steps"])]
    np.testing.assert_allclose(executed(golden, actions), golden["chunked.actions"].numpy(), rtol=1e-5, atol=1e-6)


@AGGREGATION
def test_normalised_proprioception(golden: Golden) -> None:
    expected = golden["agg.policy_qpos"].numpy()
    seen = normalizer(golden, "qpos").normalize(golden["in.qpos"].numpy()[: len(expected)])
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.golden_files("act/lerobot_temporal_ensembler*")
def test_online_ensembler(golden: Golden) -> None:
    """``j.chunks[t]`` [B, K, A] goes in at step t, ``j.actions[t]`` comes out, for coefficient j."""
    for j, coefficient in enumerate(golden.facts["coefficients"]):
        for execution in (OnlineEnsembler(coefficient), TemporalAggregation(coefficient)):
            chunks, expected = golden[f"{j}.chunks"].numpy(), golden[f"{j}.actions"].numpy()
            assert chunks.shape[-2] == golden.facts["chunk_size"]
            actual = np.stack([execution.step(lambda c=c: c) for c in chunks])
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
