"""From the robot's observation at every step to the action to execute: history, chunks, ensembling."""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_ft.deployment.predictor import Predictor
from vla_ft.deployment.temporal_aggregation import ChunkExecution, OnlineEnsembler, OpenLoop


def default_execution(predictor: Predictor) -> ChunkExecution:
    """How a policy's chunks are executed unless told otherwise: a published policy's own way (its actions per chunk, or
    its ensembling coefficient); for ours the whole chunk."""
    published = predictor.published
    if published is None:
        return OpenLoop(predictor.processor.window.action_horizon)
    if published.ensemble is not None:
        return OnlineEnsembler(published.ensemble)
    return OpenLoop(published.actions_per_chunk)


class Actor:
    """One action a step. ``reset`` before every episode.

        actor = Actor(Predictor.load(Path("my_policy")))
        action = actor.step({"proprio": joints, "image_top": picture})

    Averages are taken in robot units, which is the same as in normalised ones: un-normalising is affine.
    """

    def __init__(self, predictor: Predictor, execution: ChunkExecution | None = None) -> None:
        self.predictor = predictor
        self.execution = default_execution(predictor) if execution is None else execution
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=predictor.processor.window.observation_steps)

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
