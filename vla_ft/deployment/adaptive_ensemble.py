"""CogACT's adaptive action ensemble: overlapping chunks averaged by how well they agree with the newest one."""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_ft.deployment.temporal_aggregation import ChunkExecution, Predict, aligned
from vla_ft.errors import UserError

_TINY = 1e-7


class AdaptiveEnsemble(ChunkExecution):
    """Ask at every step; average what the last ``horizon`` chunks say of it, weighed by exp(alpha cos(said, newest)).

    CogACT (arXiv 2411.19650, §3.4), ``evaluation/adaptive_ensemble.py``: a prediction that goes another way than the
    newest counts less, so that two ways round an obstacle are not averaged into it. Published horizons are 7 for WidowX
    and 2 for Google's robot, with ``alpha`` 0.1. Of chunks shorter than ``horizon``, only those that reach this step
    are averaged.
    """

    def __init__(self, horizon: int, alpha: float = 0.1) -> None:
        """Raises UserError for a horizon below 1."""
        if horizon < 1:
            raise UserError(
                f"action_ensemble_horizon is {horizon}; the newest chunk at least is needed. Give 1 or more, or "
                "action_ensemble=False to take the first action of each."
            )
        self.horizon, self.alpha = horizon, alpha
        self._chunks: deque[np.ndarray] = deque()

    def step(self, predict: Predict) -> np.ndarray:
        """Ask for the chunk [K, A] of this step and return its action, averaged, [A]."""
        return self.add(predict())

    def add(self, chunk: np.ndarray) -> np.ndarray:
        """Take the chunk [K, A] of this step; return its action [A]. A single action [A] is averaged with those before,
        as if all were of this step."""
        self._chunks.append(chunk)
        reach = self.horizon if chunk.ndim == 1 else min(self.horizon, len(chunk))
        while len(self._chunks) > reach:
            self._chunks.popleft()
        said = np.stack(self._chunks) if chunk.ndim == 1 else aligned(self._chunks)
        return adaptive_average(said, self.alpha)

    def reset(self) -> None:
        """Begin an episode: what was said before does not count."""
        self._chunks.clear()


def adaptive_average(said: np.ndarray, alpha: float) -> np.ndarray:
    """Average [n, A] over n, oldest first, with weights by agreement with the last. Float [A]."""
    newest = said[-1]
    agreement = said @ newest / (np.linalg.norm(said, axis=1) * np.linalg.norm(newest) + _TINY)
    weights = np.exp(alpha * agreement)
    return np.asarray((weights / weights.sum()) @ said)
