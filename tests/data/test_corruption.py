"""Noise and blur of RDT's training, against their definitions and by their statistics."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vla_ft.data import corruption

GREY = np.full((120, 160, 3), 128, dtype=np.uint8)


def picture(seed: int = 0, size: tuple[int, int] = (24, 31)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def correlated(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """By the definition: every pixel's window, mirrored at borders, times the kernel (OpenCV's ``filter2D``)."""
    height, width = kernel.shape
    around = ((height // 2, height - 1 - height // 2), (width // 2, width - 1 - width // 2), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(image, around, mode="reflect").astype(np.float64), kernel.shape, axis=(0, 1)
    )
    return np.clip(np.rint((windows * kernel).sum((-1, -2))), 0, 255)


@pytest.mark.parametrize(
    ("kind", "spread"), [("gaussian", 8.0), ("laplace", 8.0 * 2**0.5), ("poisson", (8.0 + 64.0) ** 0.5)]
)
def test_noise_has_its_spread_no_bias_and_its_channels(kind: corruption.Noise, spread: float) -> None:
    each = corruption.noisy(GREY, kind, 8.0, True, np.random.default_rng(0)).astype(float) - 128
    assert each.std() == pytest.approx(spread, rel=0.03)
    assert abs(each.mean()) < 0.15
    assert abs(np.corrcoef(each[..., 0].ravel(), each[..., 1].ravel())[0, 1]) < 0.03
    same = corruption.noisy(GREY, kind, 8.0, False, np.random.default_rng(0)).astype(float) - 128
    assert (same == same[..., :1]).all()
    assert same.std() == pytest.approx(spread, rel=0.05)


def test_kinds_of_noise_have_their_own_shape() -> None:
    """Kurtosis: 3 of the normal, 6 of the Laplace distribution; signed counts of mean 8 are seldom near 0."""
    found = {}
    for kind in corruption.NOISES:
        values = corruption.noisy(GREY, kind, 8.0, True, np.random.default_rng(1)).astype(float) - 128
        found[kind] = ((values / values.std()) ** 4).mean(), (np.abs(values) < 2).mean()
    assert found["gaussian"][0] == pytest.approx(3, abs=0.15)
    assert found["laplace"][0] == pytest.approx(6, abs=0.5)
    assert found["poisson"][1] < 0.01 < 0.1 < found["gaussian"][1]


def test_noise_stays_in_range_and_without_scale_changes_nothing() -> None:
    black = np.zeros((40, 40, 3), dtype=np.uint8)
    half = corruption.noisy(black, "gaussian", 10.0, True, np.random.default_rng(0))
    assert half.dtype == np.uint8 and (half == 0).mean() == pytest.approx(0.52, abs=0.03)
    for kind in corruption.NOISES:
        assert np.array_equal(corruption.noisy(picture(), kind, 0.0, True, np.random.default_rng(0)), picture())


@pytest.mark.parametrize(("sigma", "size"), [(0.4, 5), (1.7, 5), (2.2, 7), (2.99, 9)])
def test_gaussian_blur_is_the_sum_over_its_window(sigma: float, size: int) -> None:
    places = np.arange(size) - size // 2
    line = np.exp(-(places**2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    difference = np.abs(corruption.gaussian_blurred(picture(), sigma) - correlated(picture(), kernel))
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert corruption.gaussian_blurred(picture(), 0.0) is not None


@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_mean_is_the_mean_over_its_window(size: int) -> None:
    difference = np.abs(corruption.averaged(picture(), size) - correlated(picture(), np.full((size, size), size**-2.0)))
    assert difference.max() <= 1 and difference.mean() < 0.03  # ties


@pytest.mark.parametrize(("size", "odd"), [(3, 3), (4, 5), (11, 11)])
def test_median_is_the_median_over_its_window(size: int, odd: int) -> None:
    half = odd // 2
    padded = np.pad(picture(), ((half, half), (half, half), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (odd, odd), axis=(0, 1))
    assert np.array_equal(corruption.median(picture(), size), np.median(windows, axis=(-1, -2)))


@pytest.mark.parametrize(("size", "angle", "direction"), [(3, 0.0, 0.0), (8, 33.0, 0.4), (36, 250.0, -1.0)])
def test_motion_is_its_kernel(size: int, angle: float, direction: float) -> None:
    kernel = corruption.motion_kernel(size, angle, direction)
    assert kernel.shape == (size | 1, size | 1) and kernel.sum() == pytest.approx(1, abs=1e-5)
    large = picture(size=(50, 60))
    difference = np.abs(corruption.blurred_by_motion(large, size, angle, direction) - correlated(large, kernel))
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_a_kernel_of_motion_is_a_turned_line() -> None:
    upright = corruption.motion_kernel(7, 0.0, 0.0)
    assert np.array_equal(np.flatnonzero(upright.sum(0)), [3])
    np.testing.assert_allclose(upright[:, 3], 1 / 7, atol=1e-3)
    np.testing.assert_allclose(corruption.motion_kernel(7, 90.0, 0.0), upright.T, atol=1e-6)
    np.testing.assert_allclose(corruption.motion_kernel(7, 180.0, 1.0), corruption.motion_kernel(7, 0.0, -1.0))
    rising = corruption.motion_kernel(7, 0.0, -1.0)[:, 3]
    assert (np.diff(rising) > 0).all() and rising[0] == 0
    # Clockwise, as Pillow turns by the angle's negative; at its border Pillow blends with nothing.
    byte = np.zeros((9, 9), dtype=np.uint8)
    byte[:, 4] = 127
    turned = np.asarray(Image.fromarray(byte).rotate(-30.0, Image.Resampling.BILINEAR)).astype(float)
    ours = corruption.motion_kernel(9, 30.0, 0.0)[1:-1]
    np.testing.assert_allclose(ours / ours.max(), turned[1:-1] / turned[1:-1].max(), atol=0.02)


def test_what_is_drawn_has_the_published_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, float]] = []

    def told(name: str, number: int):  # type: ignore[no-untyped-def]
        return lambda image, *arguments: (said.append((name, arguments[number])), image)[1]

    monkeypatch.setattr(corruption, "noisy", told("noise", 1))
    for name in ("gaussian_blurred", "averaged", "median", "blurred_by_motion"):
        monkeypatch.setattr(corruption, name, told(name, 0))
    random, count, noise_first = np.random.default_rng(0), 4000, 0
    for _ in range(count):
        before = len(said)
        corruption.corrupted(GREY, random)
        names = [name for name, _ in said[before:]]
        assert names.count("noise") == 1 and len(names) <= 2
        noise_first += names[0] == "noise" and len(names) == 2
    by_name = {name: np.array([value for other, value in said if other == name]) for name, _ in said}
    shares = {name: len(values) / count for name, values in by_name.items()}
    expected = {
        "noise": 1.0,
        "blurred_by_motion": 1 / 4,
        **dict.fromkeys(("gaussian_blurred", "averaged", "median"), 1 / 12),
    }
    assert shares == pytest.approx(expected, abs=0.03)
    assert noise_first / count == pytest.approx(0.25, abs=0.03)
    assert by_name["noise"].min() >= 0 and 12.5 < by_name["noise"].max() <= 12.75
    assert set(by_name["averaged"]) == set(range(2, 8)) and set(by_name["median"]) == set(range(3, 12))
    assert set(by_name["blurred_by_motion"]) == set(range(3, 37))
    assert by_name["gaussian_blurred"].max() <= 3
