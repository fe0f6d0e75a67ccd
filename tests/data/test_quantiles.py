"""Streaming statistics: NumPy's numbers while the data fits, a bounded error in bounded memory beyond."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.quantiles import Moments, Quantiles, Sketch

PROBES = (0.0, 0.01, 0.25, 0.5, 0.99, 1.0)


def pieces(values: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return np.split(values, np.sort(rng.integers(0, len(values), size=9)))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 400), width=st.integers(0, 4), seed=st.integers(0, 1000), offset=st.sampled_from([0, 1e4]))
def test_moments_and_quantiles_are_numpys(rows: int, width: int, seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(rows, width)) + offset).astype(np.float32)
    moments, quantiles = Moments(width), Quantiles(width)
    for piece in pieces(values, rng):
        moments.add(piece)
        quantiles.add(piece)
    wide = values.astype(np.float64)
    assert moments.count == rows
    np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, wide.std(0), rtol=1e-9, atol=1e-12)
    assert np.array_equal(moments.min, wide.min(0))
    assert np.array_equal(moments.max, wide.max(0))
    for q in PROBES:
        np.testing.assert_allclose(quantiles.quantile(q), np.quantile(wide, q, axis=0), atol=1e-6)
    assert quantiles.rank_error == 0


def rank_gap(values: np.ndarray, answer: float, q: float) -> float:
    """How far ``q`` is from the ranks that ``answer`` has among ``values``, as a share."""
    ordered = np.sort(values)
    low, high = (np.searchsorted(ordered, answer, side=side) / len(ordered) for side in ("left", "right"))
    return max(0.0, low - q, q - high)


@pytest.mark.parametrize("kind", ["normal", "sorted", "falling", "few values", "heavy tail", "two regimes"])
def test_the_sketch_keeps_its_bound(kind: str) -> None:
    rng = np.random.default_rng(3)
    n = 60_000
    column = {
        "normal": lambda: rng.normal(size=n),
        "sorted": lambda: np.arange(n) / n,
        "falling": lambda: -np.arange(n) / n,
        "few values": lambda: rng.integers(0, 3, size=n).astype(float),
        "heavy tail": lambda: rng.standard_cauchy(size=n),
        "two regimes": lambda: np.where(np.arange(n) < n // 2, 0.0, rng.normal(size=n)),
    }[kind]()
    values = np.stack([column, column[::-1]], axis=1).astype(np.float32)
    sketch = Sketch(2, buffer=512)
    for piece in np.array_split(values, 700):
        sketch.add(piece)
    assert 0 < sketch.rank_error < 0.02
    for q in PROBES:
        for dimension, answer in enumerate(sketch.quantile(q)):
            gap = rank_gap(values[:, dimension], np.float32(answer), q)
            assert gap <= sketch.rank_error + 2 / n, f"{q} of dimension {dimension}"


def test_the_sketch_takes_over_when_the_data_does_not_fit() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20_000, 3)).astype(np.float32)
    quantiles = Quantiles(3, exact_values=9_000, buffer=1024)
    for piece in np.array_split(values, 40):
        quantiles.add(piece)
    assert quantiles.rank_error > 0
    for dimension, answer in enumerate(quantiles.quantile(0.01)):
        assert rank_gap(values[:, dimension], np.float32(answer), 0.01) <= quantiles.rank_error


def test_memory_is_bounded() -> None:
    quantiles = Quantiles(7, exact_values=70_000, buffer=1024)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    peaks = []
    for _ in range(4):
        for _ in range(150):
            quantiles.add(rng.normal(size=(300, 7)).astype(np.float32))
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[-1] < 1.3 * peaks[0], peaks


def test_exact_quantiles_do_not_copy_what_is_held() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 1000, 16)).astype(np.float32)
    quantiles = Quantiles(16)
    for part in rows:
        quantiles.add(part)
    tracemalloc.start()
    answer = quantiles.quantile(0.25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes / 2
    np.testing.assert_array_equal(answer, np.quantile(rows.reshape(-1, 16).astype(np.float64), 0.25, axis=0))
