"""Which action to execute now, given a policy that predicts chunks: open loop, or an average of overlapping chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection

import numpy as np

Predict = Callable[[], np.ndarray]
"""Asks the policy for a chunk [..., K, A] that starts at the current step."""


class ChunkExecution(ABC):
    """Turns chunk predictions into one action a step. ``reset`` before every episode."""

    @abstractmethod
    def step(self, predict: Predict) -> np.ndarray:
        """The action [..., A] of this step. ``predict`` is called only when a new chunk is needed."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the episode."""


class OpenLoop(ChunkExecution):
    """Execute the first ``steps`` actions of a chunk, then ask for the next one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._queue: deque[np.ndarray] = deque()

    def step(self, predict: Predict) -> np.ndarray:
        if not self._queue:
            chunk = predict()
            self._queue.extend(chunk[..., i, :] for i in range(min(self.steps, chunk.shape[-2])))
        return self._queue.popleft()

    def reset(self) -> None:
        self._queue.clear()


class TemporalAggregation(ChunkExecution):
    """Ask at every step; average all predictions of this step, the older the heavier (ACT, §IV-B, algorithm 2).

    A coefficient of zero weighs all alike. ``window`` counts the newest so many chunks only. Predictions are counted by
    their age, where the published code looks for rows without an exact zero and so drops valid ones. Only the chunks
    that reach this step are kept.
    """

    def __init__(self, coefficient: float = 0.01, window: int | None = None) -> None:
        self.coefficient, self.window = coefficient, window
        self._chunks: deque[np.ndarray] = deque()

    def step(self, predict: Predict) -> np.ndarray:
        return weighted_average(self.predictions(predict()), self.coefficient)

    def predictions(self, chunk: np.ndarray) -> np.ndarray:
        """Take the chunk [..., K, A] of this step; return all predictions of this step [n, ..., A], oldest first."""
        self._chunks.append(chunk)
        reach = chunk.shape[-2] if self.window is None else min(self.window, chunk.shape[-2])
        if len(self._chunks) > reach:
            self._chunks.popleft()
        return aligned(self._chunks)

    def reset(self) -> None:
        self._chunks.clear()


class OnlineEnsembler(ChunkExecution):
    """The same average kept up to date in place, as LeRobot does: memory of one chunk, whatever its length."""

    def __init__(self, coefficient: float = 0.01) -> None:
        self.coefficient = coefficient
        self._average: np.ndarray | None = None
        self._counts = np.zeros(0, dtype=np.int64)

    def step(self, predict: Predict) -> np.ndarray:
        chunk = predict()
        horizon = chunk.shape[-2]
        weights = np.exp(-self.coefficient * np.arange(horizon))
        totals = np.cumsum(weights)
        merged = chunk.astype(np.float64)
        counts = np.zeros(horizon, dtype=np.int64)
        if self._average is not None:
            known = self._counts
            old = self._average * totals[known - 1][:, None]
            new = merged[..., :-1, :] * weights[known][:, None]
            merged[..., :-1, :] = (old + new) / totals[known][:, None]
            counts[:-1] = known
        self._average, self._counts = merged[..., 1:, :], counts[1:] + 1
        return merged[..., 0, :]

    def reset(self) -> None:
        self._average = None


def aligned(chunks: Collection[np.ndarray]) -> np.ndarray:
    """What chunks [..., K, A] of successive steps, the last of now, say of now: [n, ..., A], oldest first."""
    ages = range(len(chunks) - 1, -1, -1)
    return np.stack([chunk[..., age, :] for chunk, age in zip(chunks, ages, strict=True)])


def weighted_average(predictions: np.ndarray, coefficient: float) -> np.ndarray:
    """Average [n, ..., A] over n with weights ``exp(-coefficient * i)``, i = 0 the oldest. Float64 [..., A]."""
    weights = np.exp(-coefficient * np.arange(len(predictions)))
    return np.tensordot(weights / weights.sum(), predictions, axes=1)
