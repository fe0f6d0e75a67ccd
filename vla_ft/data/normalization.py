"""Normalising numbers by a dataset's statistics, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from vla_ft.data.sample import Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics


class Normalizer(Protocol):
    """Numbers of one feature [..., D] to normalised ones and back."""

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Robot units to normalised."""

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """Normalised to robot units."""


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """``(x - mean) / (scale + epsilon)`` and back by ``x * scale + mean``. ``mean`` and ``scale`` are float32 [D].

    The published forms differ in details that change the numbers a policy sees: which standard deviation, a floor
    under it, an epsilon that is added in one direction only (LeRobot, Octo). Dimensions outside ``mask`` (bool [D])
    pass unchanged.
    """

    mean: np.ndarray
    scale: np.ndarray
    epsilon: float = 0.0
    mask: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        statistics: FeatureStatistics,
        *,
        floor: float = 0.0,
        epsilon: float = 0.0,
        unbiased: bool = False,
        mask: np.ndarray | None = None,
    ) -> MeanStd:
        """From a feature's statistics; ``floor`` is the least scale, ``unbiased`` takes the N-1 standard deviation."""
        std = statistics.unbiased_std if unbiased else statistics.std
        return cls(mean=statistics.mean, scale=np.maximum(std, np.float32(floor)), epsilon=epsilon, mask=mask)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Robot units [..., D] to normalised float32 [..., D]."""
        return _masked(self.mask, (values - self.mean) / (self.scale + np.float32(self.epsilon)), values)

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """Normalised [..., D] to robot units, float32 [..., D]."""
        return _masked(self.mask, values * self.scale + self.mean, values)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """``clip(2 (x - low) / (high - low + 1e-8) - 1, -1, 1)`` and back by ``(x + 1) / 2 * (high - low) + low``.

    Octo's, open-pi-zero's and OpenVLA's form (``normalize_action_and_proprio``). The inverse has no epsilon and no
    clip, so that values inside the bounds come back up to 1e-8 of ``1 / (high - low)``. Dimensions outside ``mask``
    pass unchanged; those in ``zero`` become exactly 0 (OpenVLA: where the data's minimum is its maximum). All [D].
    """

    low: np.ndarray
    high: np.ndarray
    mask: np.ndarray | None = None
    zero: np.ndarray | None = None
    epsilon: float = 1e-8

    @classmethod
    def of(
        cls,
        statistics: FeatureStatistics,
        *,
        kind: Literal["quantiles", "extremes"] = "quantiles",
        mask: np.ndarray | None = None,
        zero_constant: bool = False,
    ) -> Bounds:
        """Between the quantiles 0.01 and 0.99, or between minimum and maximum."""
        quantiles = kind == "quantiles"
        return cls(
            low=statistics.q01 if quantiles else statistics.min,
            high=statistics.q99 if quantiles else statistics.max,
            mask=mask,
            zero=statistics.min == statistics.max if zero_constant else None,
        )

    @property
    def raw_zero(self) -> np.ndarray:
        """What no movement is when normalised, float32 [D]: not clipped, and 0 in dimensions that pass unchanged."""
        return _masked(self.mask, self._scaled(np.zeros_like(self.low)), np.zeros_like(self.low))

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Robot units [..., D] to normalised float32 [..., D] in [-1, 1]."""
        scaled = _masked(self.mask, np.clip(self._scaled(values), -1, 1), values)
        return scaled if self.zero is None else np.where(self.zero, np.float32(0), scaled)

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """Normalised [..., D] to robot units, float32 [..., D]. What lies outside [-1, 1] is not clipped."""
        return _masked(self.mask, (values + 1) / 2 * (self.high - self.low) + self.low, values)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return 2 * (values - self.low) / (self.high - self.low + np.asarray(self.epsilon, self.low.dtype)) - 1


def _masked(mask: np.ndarray | None, changed: np.ndarray, unchanged: np.ndarray) -> np.ndarray:
    return (changed if mask is None else np.where(mask, changed, unchanged)).astype(np.float32)


class PerDataset:
    """A feature's normaliser for every dataset of a run: each sample by the statistics of its own.

    ``make`` builds one from a feature's statistics. Statistics of a single dataset serve every sample.
    """

    def __init__(
        self, statistics: DatasetStatistics, feature: str, make: Callable[[FeatureStatistics], Normalizer]
    ) -> None:
        self.feature = feature
        self.statistics = statistics
        self.members = [make(part[feature]) for part in statistics.each().values()]
        self.width = len(next(iter(statistics.each().values()))[feature].names)

    def numbers(self, samples: Sequence[Sample]) -> np.ndarray:
        """int64 [B]: which dataset each sample is of, as ``normalize`` and batches count them."""
        return np.array([self.statistics.number_of(sample["dataset_name"]) for sample in samples], dtype=np.int64)

    def normalize(self, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Robot units [B, ..., D] of samples of these datasets to normalised float32."""
        return self._each(values, numbers, lambda member, part: member.normalize(part))

    def unnormalize(self, values: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
        """Normalised [B, ..., D] back to robot units. ``numbers`` may be left out where there is one dataset alone."""
        if numbers is None and len(self.members) > 1:
            raise ValueError(f"actions of which of {', '.join(self.statistics.parts)}? Their units differ")
        return self._each(values, numbers, lambda member, part: member.unnormalize(part))

    def _each(
        self,
        values: np.ndarray,
        numbers: np.ndarray | None,
        apply: Callable[[Normalizer, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        if len(self.members) == 1 or numbers is None:
            return apply(self.members[0], values)
        result = np.empty(values.shape, dtype=np.float32)
        for number in np.unique(numbers):
            chosen = numbers == number
            result[chosen] = apply(self.members[number], values[chosen])
        return result
