"""From the robot's observation at every step to the action to execute: history, chunks, ensembling."""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_ft.config import ExecutionConfig
from vla_ft.deployment.execution import chunk_execution
from vla_ft.deployment.predictor import Predictor
from vla_ft.deployment.temporal_aggregation import ChunkExecution


class Actor:
    """One action a step. ``reset`` before every episode.

        actor = Actor(Predictor.load(Path("my_policy")))
        action = actor.step({"proprio": joints, "image_top": picture})

    Averages are taken in robot units, which is the same as in normalised ones: un-normalising is affine.
    """

    def __init__(self, predictor: Predictor, execution: ChunkExecution | ExecutionConfig | None = None) -> None:
        """``execution`` is by default that of the policy's run, or of the published folder that it is."""
        self.predictor = predictor
        wanted = predictor.config.execution if execution is None else execution
        window = predictor.processor.window
        self.execution = (
            chunk_execution(wanted, window.action_horizon) if isinstance(wanted, ExecutionConfig) else wanted
        )
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=window.observation_steps)

    def step(self, observation: dict[str, np.ndarray], instruction: str = "") -> np.ndarray:
        """The action float32 [A] in robot units, from one observation: ``proprio`` [P] and ``image_<camera>`` uint8
        [H, W, 3], or by the names of the policy's publisher. The model runs only when a new chunk is needed.

        Policies of several observation steps get what was seen so far. Raises UserError like ``Predictor.predict``.
        """
        self._seen.append(self.predictor.our_names(observation))
        return self.execution.step(lambda: self.predictor.predict(self._window(), instruction)).astype(np.float32)

    def reset(self) -> None:
        """Forget the episode."""
        self._seen.clear()
        self.execution.reset()

    def _window(self) -> dict[str, np.ndarray]:
        if self._seen.maxlen == 1:
            return self._seen[-1]
        return {key: np.stack([np.asarray(one[key]) for one in self._seen]) for key in self._seen[-1]}
