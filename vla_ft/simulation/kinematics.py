"""Inverse kinematics of the two ViperX arms: damped least squares on MuJoCo's own kinematic model."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from vla_ft.simulation.geometry import Pose, rotation_between

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_DAMPING = 1e-2
_MAX_TURN = 0.2  # radians a joint may move in one iteration, to stay where the linearisation holds
_ITERATIONS = 60
_CLOSE = 1e-4  # metres and radians


class ArmKinematics:
    """Solves for the six joint angles of one arm. Holds its own state: the simulation is never touched."""

    def __init__(self, model: Any, side: str) -> None:
        """``model`` is a ``mujoco.MjModel`` of gym-aloha; ``side`` is ``left`` or ``right``."""
        self.model = model
        self.data = mujoco.MjData(model)
        self.body = model.body(f"vx300s_{side}/gripper_link").id
        joints = [model.joint(f"vx300s_{side}/{name}") for name in JOINTS]
        self.positions = np.array([joint.qposadr[0] for joint in joints])
        self.columns = np.array([joint.dofadr[0] for joint in joints])
        self.limits = np.array([joint.range for joint in joints])

    def forward(self, angles: np.ndarray) -> Pose:
        """Pose of the gripper link at joint ``angles`` [6], in radians."""
        self.data.qpos[self.positions] = angles
        mujoco.mj_kinematics(self.model, self.data)
        return Pose(self.data.xpos[self.body].copy(), self.data.xquat[self.body].copy())

    def solve(self, target: Pose, start: np.ndarray) -> tuple[np.ndarray, float]:
        """Joint angles [6] near ``start`` that reach ``target``, and the error left (metres + radians).

        Damped least squares (Wampler, 1986): bounded steps near singular poses instead of exact ones.
        """
        angles = np.clip(start, self.limits[:, 0], self.limits[:, 1])
        for _ in range(_ITERATIONS):
            miss = self._miss(target, angles)
            if np.abs(miss).max() < _CLOSE:
                break
            jacobian = self._jacobian()
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6), miss)
            step *= min(1.0, _MAX_TURN / max(float(np.abs(step).max()), 1e-12))
            angles = np.clip(angles + step, self.limits[:, 0], self.limits[:, 1])
        miss = self._miss(target, angles)
        return angles, float(np.linalg.norm(miss[:3]) + np.linalg.norm(miss[3:]))

    def _miss(self, target: Pose, angles: np.ndarray) -> np.ndarray:
        """[6]: metres, then radians, from the pose at ``angles`` to ``target``, in the world frame."""
        pose = self.forward(angles)
        return np.concatenate([target.position - pose.position, rotation_between(pose.rotation, target.rotation)])

    def _jacobian(self) -> np.ndarray:
        """[6, 6]: how the gripper link moves and turns with the arm's joints, at the last ``forward``."""
        mujoco.mj_comPos(self.model, self.data)
        full = np.zeros((6, self.model.nv))
        mujoco.mj_jacBody(self.model, self.data, full[:3], full[3:], self.body)
        return full[:, self.columns]
