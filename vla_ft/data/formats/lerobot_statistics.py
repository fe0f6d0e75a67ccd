"""Statistics as LeRobot keeps them, by episode and aggregated (huggingface/lerobot, ``compute_stats.py``).

Quantiles are LeRobot's approximation: from a histogram of 5,000 bins an episode, then averaged over episodes. Ours for
training are exact (``vla_ft.data.statistics``); these are for others who read what we write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_BINS = 5000
_MARGIN = 1e-10
_LONG_SIDE, _TARGET_SIDE = 300, 150

Stats = dict[str, np.ndarray]


def column_statistics(values: np.ndarray, quantiles: bool) -> Stats:
    """Statistics of [n, D] numbers: each [D] (float64), and ``count`` [1]."""
    wide = np.asarray(values, dtype=np.float64)
    stats: Stats = {"min": wide.min(0), "max": wide.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    stats["count"] = np.array([len(wide)])
    if quantiles:
        columns = [_histogram_quantiles(column, np.ones(len(column))) for column in wide.T]
        stats |= {name: np.array([c[name] for c in columns]) for name in QUANTILES}
    return stats


def sampled_frames(length: int) -> np.ndarray:
    """Which frames of an episode the statistics of its images are made from, int64."""
    count = max(min(100, length), min(int(length**0.75), 10_000))
    return np.round(np.linspace(0, length - 1, count)).astype(np.int64)


def pixel_counts(image: np.ndarray) -> np.ndarray:
    """How often each value occurs by channel, int64 [3, 256]; large uint8 [H, W, 3] images are strided down first."""
    height, width = image.shape[:2]
    longer = max(height, width)
    stride = longer // _TARGET_SIDE if longer >= _LONG_SIDE else 1
    small = image[::stride, ::stride]
    return np.stack([np.bincount(small[..., channel].ravel(), minlength=256) for channel in range(3)])


def image_statistics(counts: np.ndarray, frames: int, quantiles: bool) -> Stats:
    """Statistics by channel, [3, 1, 1] in [0, 1], from summed ``pixel_counts`` of ``frames`` frames."""
    levels = np.arange(256, dtype=np.float64)
    total = counts.sum(1)
    mean = (counts * levels).sum(1) / total
    variance = (counts * (levels[None] - mean[:, None]) ** 2).sum(1) / total
    stats: Stats = {
        "min": (counts > 0).argmax(1) / 255,
        "max": (255 - (counts > 0)[:, ::-1].argmax(1)) / 255,
        "mean": mean / 255,
        "std": np.sqrt(variance) / 255,
    }
    if quantiles:
        channels = [_histogram_quantiles(levels[c > 0], c[c > 0]) for c in counts]
        stats |= {name: np.array([c[name] for c in channels]) / 255 for name in QUANTILES}
    return {name: values.reshape(3, 1, 1) for name, values in stats.items()} | {"count": np.array([frames])}


class Aggregate:
    """Joins the statistics of episodes: extremes, pooled moments, and quantiles averaged by count."""

    def __init__(self) -> None:
        self._by_feature: dict[str, Stats] = {}

    def add(self, stats: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in one episode's statistics by feature."""
        for name, entry in stats.items():
            new = {key: np.asarray(value, dtype=np.float64) for key, value in entry.items()}
            old = self._by_feature.get(name)
            self._by_feature[name] = new if old is None else _join(old, new)

    def result(self) -> dict[str, dict[str, Any]]:
        """Plain JSON types by feature."""
        return {name: plain(stats) for name, stats in self._by_feature.items()}


def plain(stats: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Lists for JSON; ``count`` as integers."""
    return {k: (np.asarray(v).astype(int) if k == "count" else np.asarray(v)).tolist() for k, v in stats.items()}


def _join(old: Stats, new: Stats) -> Stats:
    total = old["count"] + new["count"]
    share = new["count"] / total
    shift = new["mean"] - old["mean"]
    variance = old["std"] ** 2 * (1 - share) + new["std"] ** 2 * share + shift**2 * share * (1 - share)
    joined = {
        "min": np.minimum(old["min"], new["min"]),
        "max": np.maximum(old["max"], new["max"]),
        "mean": old["mean"] + shift * share,
        "std": np.sqrt(variance),
        "count": total,
    }
    return joined | {q: old[q] * (1 - share) + new[q] * share for q in QUANTILES if q in old and q in new}


def _histogram_quantiles(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Quantiles of weighted values, interpolated within the bin where the cumulative count passes the wanted one."""
    if weights.sum() < 2:
        return dict.fromkeys(QUANTILES, float(values[0]))
    edges = np.linspace(values.min() - _MARGIN, values.max() + _MARGIN, _BINS + 1)
    if not (np.diff(edges) > 0).all():  # the margin vanishes beside large values
        return dict.fromkeys(QUANTILES, float(values[0])) if np.ptp(values) == 0 else _exact(values, weights)
    heights, _ = np.histogram(values, bins=edges, weights=weights)
    passed = np.cumsum(heights)
    result = {}
    for name, share in QUANTILES.items():
        wanted = share * passed[-1]
        place = min(int(np.searchsorted(passed, wanted)), _BINS - 1)
        before = passed[place - 1] if place else 0.0
        inside = (wanted - before) / heights[place] if place and heights[place] else 0.0
        result[name] = float(edges[place] + inside * (edges[place + 1] - edges[place]))
    return result


def _exact(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    repeated = np.repeat(values, weights.astype(int))
    return {name: float(np.quantile(repeated, share)) for name, share in QUANTILES.items()}
