"""A trained policy that drives: one observation in, one action out, by the way of executing chunks of its run."""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_ft.config import ExecutionConfig
from vla_ft.deployment.predictor import Predictor
from vla_ft.deployment.temporal_aggregation import ChunkExecution, OpenLoop, TemporalAggregation


def chunk_execution(config: ExecutionConfig, horizon: int) -> ChunkExecution:
    """The execution that ``config`` asks for, of chunks of ``horizon`` actions."""
    if not config.temporal_ensemble:
        return OpenLoop(horizon if config.steps is None else config.steps)
    coefficient = 0.0 if config.ensemble_weights == "uniform" else config.ensemble_coefficient
    return TemporalAggregation(coefficient, config.ensemble_window)


def describe(config: ExecutionConfig) -> str:
    """An execution in words."""
    if not config.temporal_ensemble:
        return "open loop, " + (f"{config.steps} actions" if config.steps else "all actions") + " of a chunk"
    window = f"the last {config.ensemble_window}" if config.ensemble_window else "all"
    weights = f"exponential weights, coefficient {config.ensemble_coefficient:g}"
    return f"temporal ensemble of {window} chunks, " + (
        "uniform weights" if config.ensemble_weights == "uniform" else weights
    )


class Controller:
    """Keeps what one episode needs: the policy's observation window and the chunks that still count."""

    def __init__(self, predictor: Predictor, execution: ExecutionConfig | None = None) -> None:
        """``execution`` is the run's own by default."""
        self.predictor = predictor
        self.execution = predictor.config.execution if execution is None else execution
        window = predictor.processor.window
        self._chunks = chunk_execution(self.execution, window.action_horizon)
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=window.observation_steps)

    def act(self, observation: dict[str, np.ndarray], instruction: str = "") -> np.ndarray:
        """This step's action float32 [A] in robot units, from its ``proprio`` [P] and ``image_<camera>`` [H, W, 3].

        Before the episode's first step its first observation stands, as in training. Raises UserError where the
        observation does not fit the policy.
        """
        self._seen.append(observation)
        action = self._chunks.step(lambda: self.predictor.predict(self._window(), instruction))
        return action.astype(np.float32)

    def reset(self) -> None:
        """Begin another episode."""
        self._chunks.reset()
        self._seen.clear()

    def _window(self) -> dict[str, np.ndarray]:
        """Arrays [T, ...], oldest first, with their ``pad_mask``."""
        missing = self.predictor.processor.window.observation_steps - len(self._seen)
        steps = [self._seen[0]] * missing + list(self._seen)
        known = [key for key in self.predictor.processor.keys if all(key in step for step in steps)]
        window = {key: np.stack([step[key] for step in steps]) for key in known}
        return {**window, "pad_mask": np.arange(len(steps)) >= missing}
