"""Mean and standard deviation, in the published variants."""

from __future__ import annotations

import numpy as np

from vla_ft.data.normalization import MeanStd
from vla_ft.data.statistics import FeatureStatistics


def feature(values: np.ndarray) -> FeatureStatistics:
    order = np.zeros(values.shape[1], np.float32)
    return FeatureStatistics(
        mean=values.mean(0).astype(np.float32),
        std=values.std(0).astype(np.float32),
        min=order,
        max=order,
        q01=order,
        q99=order,
        count=len(values),
        names=tuple("abc"[: values.shape[1]]),
    )


VALUES = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])


def test_original_takes_the_unbiased_std_and_floors_it() -> None:
    form = MeanStd.of(feature(VALUES), floor=0.01, unbiased=True)
    np.testing.assert_allclose(form.scale, [2.0, 0.01], rtol=1e-6)
    np.testing.assert_allclose(form.normalize(np.array([4.0, 5.02])), [1.0, 2.0], rtol=1e-4)


def test_epsilon_is_added_in_one_direction_only() -> None:
    form = MeanStd.of(feature(VALUES), epsilon=0.5)
    std = np.float32(np.sqrt(8 / 3))
    np.testing.assert_allclose(form.normalize(np.array([2 + std, 5.0])), [std / (std + 0.5), 0.0], rtol=1e-6)
    np.testing.assert_allclose(form.unnormalize(np.array([1.0, 1.0])), [2 + std, 5.0], rtol=1e-6)


def test_round_trip_keeps_shape_and_type() -> None:
    form = MeanStd.of(feature(VALUES), floor=0.01)
    values = np.random.default_rng(0).normal(size=(4, 3, 2))
    back = form.unnormalize(form.normalize(values))
    assert (back.shape, back.dtype) == ((4, 3, 2), np.float32)
    np.testing.assert_allclose(back, values, rtol=1e-5, atol=1e-5)
