"""Rotations: roll-pitch-yaw about fixed x, y, z axes (R = Rz(yaw) Ry(pitch) Rx(roll)), quaternions as (x, y, z, w)."""

from __future__ import annotations

import numpy as np

_GIMBAL = 1e-6


def matrix_from_euler(angles: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw [..., 3] in rad to rotation matrices [..., 3, 3], float64."""
    roll, pitch, yaw = np.moveaxis(np.asarray(angles, dtype=np.float64), -1, 0)
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(a), np.sin(a)) for a in (roll, pitch, yaw))
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_from_quaternion(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions [..., 4] (x, y, z, w; of any length but zero) to rotation matrices [..., 3, 3], float64."""
    q = np.asarray(quaternions, dtype=np.float64)
    x, y, z, w = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def euler_from_matrix(matrices: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] to roll, pitch, yaw [..., 3] in rad, float64; pitch in [-pi/2, pi/2].

    Looking straight up or down, where roll and yaw turn about one axis, yaw is 0 and roll has all of it.
    """
    r = np.asarray(matrices, dtype=np.float64)
    locked = np.abs(np.abs(r[..., 2, 0]) - 1) < _GIMBAL
    pitch = -np.arcsin(np.clip(r[..., 2, 0], -1, 1))
    sign = np.sign(pitch)
    free, fixed = np.arctan2(r[..., 2, 1], r[..., 2, 2]), np.arctan2(sign * r[..., 0, 1], sign * r[..., 0, 2])
    roll = np.where(locked, fixed, free)
    yaw = np.where(locked, 0.0, np.arctan2(r[..., 1, 0], r[..., 0, 0]))
    return np.stack([roll, pitch, yaw], axis=-1)


def euler_from_quaternion(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions [..., 4] (x, y, z, w) to roll, pitch, yaw [..., 3] in rad, float32."""
    return euler_from_matrix(matrix_from_quaternion(quaternions)).astype(np.float32)


def quaternion_from_euler(angles: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw [..., 3] in rad to unit quaternions [..., 4] (x, y, z, w), float32; w is never negative."""
    roll, pitch, yaw = np.moveaxis(np.asarray(angles, dtype=np.float64) / 2, -1, 0)
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(a), np.sin(a)) for a in (roll, pitch, yaw))
    q = np.stack(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ],
        axis=-1,
    )
    return np.where(q[..., 3:] < 0, -q, q).astype(np.float32)
