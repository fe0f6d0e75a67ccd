"""Rotations as six numbers: the first two columns of the matrix (Zhou et al. 2019, arXiv 1812.07035)."""

from __future__ import annotations

import numpy as np

from vla_ft.data.standardize.rotations import (
    euler_from_matrix,
    matrix_from_euler,
    matrix_from_quaternion,
    quaternion_from_euler,
)

_SHORTEST = 1e-8


def six_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """[..., 3, 3] to [..., 6]: first column, then second."""
    return np.concatenate((matrix[..., 0], matrix[..., 1]), axis=-1)


def matrix_from_six(six: np.ndarray) -> np.ndarray:
    """[..., 6], which need be neither of unit length nor orthogonal, to a rotation matrix [..., 3, 3], float64.

    The first column keeps its direction, the third stands on both, the second follows.
    """
    first = _unit(np.asarray(six[..., :3], dtype=np.float64))
    third = _unit(np.cross(first, six[..., 3:]))
    return np.stack((first, np.cross(third, first), third), axis=-1)


def to_six(values: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw [..., 3] in rad, or quaternions [..., 4] (x, y, z, w), to [..., 6]."""
    matrix = matrix_from_euler(values) if values.shape[-1] == 3 else matrix_from_quaternion(values)
    return six_from_matrix(matrix)


def to_three(six: np.ndarray, *, quaternion: bool = False) -> np.ndarray:
    """[..., 6] to roll, pitch, yaw [..., 3] in rad, or to a quaternion [..., 4]."""
    angles = euler_from_matrix(matrix_from_six(six))
    return quaternion_from_euler(angles) if quaternion else angles


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SHORTEST)
