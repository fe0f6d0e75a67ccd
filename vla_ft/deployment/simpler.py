"""Policies as SIMPLER (Li et al. 2024, arXiv 2405.05941) calls them: ``reset(task)``, then ``step(image)`` each control
step.

What all share is here: the settings of its two robots, chunks to actions, grippers and rotations in SIMPLER's terms. A
policy adds how it predicts a chunk, and how its gripper is commanded where that is not as in ``simpler_env/policies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vla_ft.deployment.temporal_aggregation import ChunkExecution
from vla_ft.errors import UserError, unknown

Command = dict[str, np.ndarray]
"""``world_vector`` [3] in metres, a rotation [3] in radians, a gripper [1]."""
_CHANGE = 0.5


@dataclass(frozen=True, kw_only=True)
class RobotSetup:
    """What SIMPLER's ``policy_setup`` decides."""

    camera: str
    """Whose picture a policy sees."""
    dataset: str
    """Whose statistics actions are un-normalised by."""
    ensemble_horizon: int
    """Chunks that are averaged."""
    gripper_repeats: int
    """Control steps that one change of the gripper lasts; 0 where commands are absolute."""


SETUPS = {
    "widowx_bridge": RobotSetup(camera="3rd_view_camera", dataset="bridge_orig", ensemble_horizon=7, gripper_repeats=0),
    "google_robot": RobotSetup(
        camera="overhead_camera", dataset="fractal20220817_data", ensemble_horizon=2, gripper_repeats=10
    ),
}


def find_setup(name: str) -> RobotSetup:
    """A robot's settings by SIMPLER's name. Raises UserError."""
    if name not in SETUPS:
        raise unknown("policy_setup", name, SETUPS)
    return SETUPS[name]


class SimplerPolicy(ABC):
    """The interface that SIMPLER's evaluation loop drives. Actions are [dx, dy, dz, droll, dpitch, dyaw, gripper]."""

    def __init__(
        self,
        setup: RobotSetup,
        execution: ChunkExecution,
        action_scale: float = 1.0,
        gripper: Gripper | None = None,
    ) -> None:
        """``gripper``: by default absolute for a WidowX, and for Google's robot changes that are held."""
        self.setup, self.execution, self.action_scale = setup, execution, action_scale
        self.task = ""
        usual = StickyGripper(setup.gripper_repeats) if setup.gripper_repeats else OpenOrClosed()
        self.gripper: Gripper = usual if gripper is None else gripper

    @abstractmethod
    def predict(self, image: np.ndarray, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """A chunk [T, 7] in robot units, the gripper 1 open and 0 closed."""

    def reset(self, task_description: str) -> None:
        """Begin an episode with this instruction."""
        self.task = task_description
        self.execution.reset()
        self.gripper.reset()

    def change_task(self, task_description: str) -> None:
        """Another instruction than before: by default a new episode."""
        self.reset(task_description)

    def step_on(self, observation: Mapping[str, Any], task_description: str | None = None) -> tuple[Command, Command]:
        """``step`` on an observation as SIMPLER's environments give it: ``image`` by camera, ``agent`` by name."""
        try:
            image = observation["image"][self.setup.camera]["rgb"]
        except (KeyError, TypeError):
            cameras = ", ".join(observation.get("image", {})) or "none"
            raise UserError(
                f"The observation has no picture of '{self.setup.camera}', which this robot is seen by; its cameras: "
                f"{cameras}. Choose the policy_setup of the environment's robot."
            ) from None
        return self.step(image, task_description, **observation.get("agent", {}))

    def step(
        self, image: np.ndarray, task_description: str | None = None, **observation: np.ndarray
    ) -> tuple[Command, Command]:
        """The raw action, and the same as SIMPLER takes it, of an observation: ``image`` uint8 [H, W, 3].

        ``observation``: what a policy reads besides (proprioception). Raises UserError for an image of another kind.
        """
        if task_description is not None and task_description != self.task:
            self.change_task(task_description)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            seen = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"The observation's image is {seen}; expected RGB, uint8 [height, width, 3].")
        if not self.task:
            raise UserError("The policy has no instruction. Call reset(task_description) first, or give it to step.")
        action = self.execution.step(lambda: self.predict(image, observation))
        raw = {"world_vector": action[:3], "rotation_delta": action[3:6], "open_gripper": action[6:7]}
        return raw, {
            "world_vector": action[:3] * self.action_scale,
            "rot_axangle": axis_angle(*action[3:6]) * self.action_scale,
            "gripper": self.grip(action[6:7]),
            "terminate_episode": np.array([0.0]),
        }

    def grip(self, opened: np.ndarray) -> np.ndarray:
        """The simulator's command [1] for the gripper of the action that is executed, [1]."""
        return self.gripper.step(opened)


class Gripper(Protocol):
    """A policy's gripper (1 open, 0 closed) to the simulator's: 1 opens and -1 closes a WidowX, 1 closes Google's."""

    def reset(self) -> None:
        """Begin an episode."""

    def step(self, opened: np.ndarray) -> np.ndarray:
        """The command [1] of a prediction [1]."""


class OpenOrClosed:
    """1 above one half, -1 otherwise."""

    def reset(self) -> None:
        """Nothing is remembered."""

    def step(self, opened: np.ndarray) -> np.ndarray:
        """1 opens."""
        return 2.0 * (opened > _CHANGE) - 1.0


class StickyGripper:
    """Absolute commands as changes (last - now), each held for ``repeats`` steps: Google's robot needs them so long.

    As in ``simpler_env/policies`` with CogACT's mending: after a change the new command is what the next one is
    compared with.
    """

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._last: np.ndarray | None = None
        self._held = np.zeros(1)
        self._left = 0

    def step(self, opened: np.ndarray) -> np.ndarray:
        """The change [1] that a command [1] asks for, or the one that is still held."""
        if self._last is None:
            self._last = opened
        change = self._last - opened
        if np.abs(change) > _CHANGE and not self._left:
            self._held, self._left, self._last = change, self.repeats, opened
        if self._left:
            self._left -= 1
            return self._held
        return change


class HeldGripper:
    """Absolute commands turned about (``1 - 2 opened``); the first beyond one half is held for ``repeats`` steps.

    open-pi-zero's and Octo's rule: nothing is compared with the last command, so that an arm that stays open is told to
    open all the time.
    """

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._held = np.zeros(1)
        self._left = 0

    def step(self, opened: np.ndarray) -> np.ndarray:
        """The command [1], or the one that is still held."""
        command = 1.0 - 2.0 * opened
        if not self._left and np.abs(command) > _CHANGE:
            self._held, self._left = command, self.repeats
        if not self._left:
            return command
        self._left -= 1
        return self._held


def axis_angle(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rotations about the fixed axes x, y, z in this order (rad) as one: its axis times its angle, float64 [3]."""
    half = np.array([roll, pitch, yaw], dtype=np.float64) / 2
    (sx, sy, sz), (cx, cy, cz) = np.sin(half), np.cos(half)
    # The quaternion of Rz(yaw) Ry(pitch) Rx(roll).
    real = cx * cy * cz + sx * sy * sz
    axis = np.array([sx * cy * cz - cx * sy * sz, cx * sy * cz + sx * cy * sz, cx * cy * sz - sx * sy * cz])
    length = float(np.linalg.norm(axis))
    if length == 0:
        return np.zeros(3)
    return axis / length * 2 * float(np.arctan2(length, real))
