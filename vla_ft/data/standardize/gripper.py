"""Gripper commands in one convention: absolute, 1 is open, 0 is closed. Rules of Octo's and OpenVLA's RLDS loaders."""

from __future__ import annotations

import numpy as np

OPEN, CLOSED = 0.95, 0.05
"""Above the first a continuous command means open, below the second closed."""
MOVES = 0.1
"""A relative command beyond this, either way, is a decision."""


def binarized(commands: np.ndarray) -> np.ndarray:
    """Continuous commands [n] as 0 or 1, float32: one in between takes the next decided value.

    Undecided commands at the end all take the last raw command, whatever it is, as the published scan does.
    """
    values = np.asarray(commands, dtype=np.float32)
    decided = (values > OPEN) | (values < CLOSED)
    result = np.where(decided, (values > OPEN).astype(np.float32), values[-1:] if len(values) else 0)
    # The place of the next decision at or after each step; the last step stands in where there is none.
    places = np.where(decided, np.arange(len(values)), len(values) - 1)
    nearest = np.minimum.accumulate(places[::-1])[::-1]
    return result[nearest].astype(np.float32)


def inverted(commands: np.ndarray) -> np.ndarray:
    """Swap open and closed: ``1 - x``, float32."""
    return (1 - np.asarray(commands, dtype=np.float32)).astype(np.float32)


def absolute_from_relative(commands: np.ndarray) -> np.ndarray:
    """Relative commands [n] (positive closes, negative opens, near zero keeps) as absolute ones, float32.

    Before the first decision the gripper is taken to be in the other state: nobody closes what is closed. A
    trajectory without a decision is open throughout.
    """
    values = np.asarray(commands, dtype=np.float32)
    moves = np.where(values < -MOVES, 1, np.where(values > MOVES, -1, 0))
    decided = np.flatnonzero(moves)
    if not len(decided):
        return np.ones(len(values), dtype=np.float32)
    latest = np.maximum.accumulate(np.where(moves != 0, np.arange(len(moves)), -1))
    states = np.where(latest < 0, -moves[decided[0]], moves[latest])
    return (states / 2 + 0.5).astype(np.float32)
