"""Poses and unit quaternions (w, x, y, z), in plain numpy: what the expert and the inverse kinematics share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pose:
    """A rigid pose in the world: ``position`` [3] in metres, ``rotation`` [4] a unit quaternion (w, x, y, z)."""

    position: np.ndarray
    rotation: np.ndarray

    @property
    def forward(self) -> np.ndarray:
        """Unit vector [3] along the local x axis: where a gripper points."""
        return rotation_matrix(self.rotation)[:, 0]


def axis_angle(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """Quaternion [4] of a right-handed turn by ``degrees`` about ``axis``."""
    half = np.radians(degrees) / 2
    unit = np.asarray(axis, float) / np.linalg.norm(axis)
    return np.concatenate([[np.cos(half)], np.sin(half) * unit])


def compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hamilton product [4]: turn by ``second``, then by ``first``."""
    w, v = first[0], first[1:]
    return np.concatenate([[w * second[0] - v @ second[1:]], w * second[1:] + second[0] * v + np.cross(v, second[1:])])


def rotation_matrix(rotation: np.ndarray) -> np.ndarray:
    """Matrix [3, 3] of a unit quaternion."""
    w, x, y, z = rotation
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Rotation vector [3] in the world frame, in radians, that turns ``start`` into ``end`` the short way."""
    turn = compose(end, start * np.array([1.0, -1.0, -1.0, -1.0]))
    turn = turn if turn[0] >= 0 else -turn
    sine = float(np.linalg.norm(turn[1:]))
    if sine < 1e-9:
        return np.zeros(3)
    return turn[1:] / sine * 2 * np.arctan2(sine, turn[0])


def blend(start: Pose, end: Pose, share: float) -> Pose:
    """The pose at ``share`` (0 to 1) of the way: a straight line, and a turn at constant speed about one axis."""
    turn = rotation_between(start.rotation, end.rotation) * share
    angle = float(np.linalg.norm(turn))
    rotation = start.rotation
    if angle > 1e-9:
        rotation = compose(axis_angle((turn[0], turn[1], turn[2]), float(np.degrees(angle))), rotation)
    return Pose(start.position + share * (end.position - start.position), rotation / np.linalg.norm(rotation))


def ease(share: float) -> float:
    """Minimum-jerk time scaling: 0 to 1 with no speed and no acceleration at either end (Flash and Hogan, 1985)."""
    s = min(max(share, 0.0), 1.0)
    return s**3 * (10 - 15 * s + 6 * s**2)
