"""What published loaders do with the steps of an action chunk that lie past an episode's end.

All of it follows from ``Sample.action_pad_mask`` (``real`` here): True for steps inside the episode, then False.
"""

from __future__ import annotations

import numpy as np

from vla_ft.data.normalization import Bounds

MASK_SLACK = 5
"""OpenVLA's ``chunk_act_obs`` calls so many steps past the end still valid."""


def neutral_padding(normalized: np.ndarray, real: np.ndarray, normalizer: Bounds, absolute: np.ndarray) -> np.ndarray:
    """Replace steps past the end so that they move nothing (OpenVLA, ``chunk_act_obs``), float32 [..., K, A].

    ``normalized`` [..., K, A] repeats the last action there; ``real`` bool [..., K]. Relative dimensions become the
    normalised value of no movement, neither clipped nor set to 0 where the data is constant; ``absolute`` ones (bool
    [A], the gripper) keep the last command.
    """
    neutral = np.where(absolute, normalized, normalizer.raw_zero)
    return np.where(real[..., None], normalized, neutral).astype(np.float32)


def mask_with_slack(real: np.ndarray, slack: int = MASK_SLACK) -> np.ndarray:
    """OpenVLA's action mask bool [..., K]: True for real steps and up to ``slack`` steps past the end."""
    return np.cumsum(~real, axis=-1) <= slack


def task_completed(real: np.ndarray) -> np.ndarray:
    """Octo's flags bool [..., K] for an observation window of one step.

    The published formula, ``goal - (t - (W + 1) + w + h) <= 0``, says done two steps after the last one of the episode;
    so here the first padded step is not yet flagged and those after it are.
    """
    late = np.zeros_like(real)
    late[..., 1:] = ~real[..., :-1]
    return late


def dimension_mask(real: np.ndarray, action_dim: int, used: np.ndarray | None = None) -> np.ndarray:
    """Octo's action mask bool [..., K, A]: a dimension that the robot has (``used``, all by default), task not done."""
    valid = np.ones(action_dim, dtype=bool) if used is None else used
    return ~task_completed(real)[..., None] & valid
