"""Normalising numbers by a dataset's statistics, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ft.data.statistics import FeatureStatistics


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """``(x - mean) / (scale + epsilon)`` and back by ``x * scale + mean``. ``mean`` and ``scale`` are float32 [D].

    The published forms differ in details that change the numbers a policy sees: which standard deviation, a floor
    under it, an epsilon that is added in one direction only (LeRobot).
    """

    mean: np.ndarray
    scale: np.ndarray
    epsilon: float = 0.0

    @classmethod
    def of(
        cls, statistics: FeatureStatistics, *, floor: float = 0.0, epsilon: float = 0.0, unbiased: bool = False
    ) -> MeanStd:
        """From a feature's statistics; ``floor`` is the least scale, ``unbiased`` takes the N-1 standard deviation."""
        std = statistics.unbiased_std if unbiased else statistics.std
        return cls(mean=statistics.mean, scale=np.maximum(std, np.float32(floor)), epsilon=epsilon)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Robot units [..., D] to normalised float32 [..., D]."""
        return ((values - self.mean) / (self.scale + np.float32(self.epsilon))).astype(np.float32)

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """Normalised [..., D] to robot units, float32 [..., D]."""
        return (values * self.scale + self.mean).astype(np.float32)
