"""Mean and standard deviation, bounds, neutral steps: in the published variants."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.chunks import dimension_mask, mask_with_slack, neutral_padding, task_completed
from vla_ft.data.normalization import Bounds, MeanStd
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


def bounds(**changes: np.ndarray) -> Bounds:
    return Bounds(
        **{"low": np.array([-2, 0, 5], dtype=np.float32), "high": np.array([2, 1, 5], dtype=np.float32), **changes}
    )


def test_bounds_go_to_one_and_are_clipped() -> None:
    values = np.array([[-2, 0, 5], [2, 1, 5], [0, 0.5, 5], [9, -9, 5]], dtype=np.float32)
    got = bounds().normalize(values)
    np.testing.assert_allclose(got[:, :2], [[-1, -1], [1, 1], [0, 0], [1, -1]], atol=1e-6)
    zero = bounds(zero=np.array([False, False, True])).normalize(values)
    assert (zero[:, 2] == 0).all()
    masked = bounds(mask=np.array([True, False, True])).normalize(values)
    assert masked[:, 1].tolist() == [0, 1, 0.5, -9]


def test_bounds_of_statistics() -> None:
    low, high = np.array([-1, 2], dtype=np.float32), np.array([1, 2], dtype=np.float32)
    stats = FeatureStatistics(
        mean=low, std=high, min=low, max=high, q01=low / 2, q99=high / 2, count=5, names=("a", "b")
    )
    assert Bounds.of(stats).low.tolist() == [-0.5, 1]
    extremes = Bounds.of(stats, kind="extremes", zero_constant=True)
    assert extremes.high.tolist() == [1, 2]
    assert extremes.zero is not None
    assert extremes.zero.tolist() == [False, True]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6))
def test_what_lies_inside_the_bounds_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.normal(size=4).astype(np.float32)
    high = low + rng.uniform(0.1, 3, size=4).astype(np.float32)
    form = Bounds(low=low, high=high, mask=np.array([True, True, True, False]))
    values = (low + rng.uniform(0, 1, size=(6, 4)) * (high - low)).astype(np.float32)
    np.testing.assert_allclose(form.unnormalize(form.normalize(values)), values, atol=3e-6)
    inside = rng.uniform(-1, 1, size=(6, 4)).astype(np.float32)
    np.testing.assert_allclose(form.normalize(form.unnormalize(inside)), inside, atol=3e-5)


def test_mean_and_standard_deviation_leave_unmasked_dimensions_alone() -> None:
    form = MeanStd(mean=np.full(2, 1.0, np.float32), scale=np.full(2, 2.0, np.float32), mask=np.array([True, False]))
    assert form.normalize(np.array([5.0, 0.25])).tolist() == [2, 0.25]
    assert form.unnormalize(np.array([2.0, 0.25])).tolist() == [5, 0.25]


def test_neutral_steps_move_nothing_and_hold_the_gripper() -> None:
    form = Bounds(
        low=np.array([-1, 0, 0], np.float32),
        high=np.array([1, 4, 1], np.float32),
        mask=np.array([True, True, False]),
    )
    actions = np.tile(np.array([[0.5, 4, 1]], np.float32), (8, 1))
    real = np.arange(8) < 2
    got = neutral_padding(form.normalize(actions), real, form, np.array([False, False, True]))
    np.testing.assert_allclose(got[:2], [[0.5, 1, 1]] * 2, atol=1e-6)
    np.testing.assert_allclose(got[2:], [[0, -1, 1]] * 6, atol=1e-6)
    np.testing.assert_allclose(form.unnormalize(got[2:])[:, :2], 0, atol=1e-6)
    assert mask_with_slack(real).tolist() == [True] * 7 + [False]
    assert task_completed(real).tolist() == [False] * 3 + [True] * 5
    assert dimension_mask(real, 2, np.array([True, False]))[:, 1].any() is np.False_
