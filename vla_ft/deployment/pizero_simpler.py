"""π0 in SIMPLER as open-pi-zero evaluates it (``src/agent/env_adapter/simpler.py``, ``config/eval``).

Its fork of SIMPLER (allenzren/SimplerEnv) gives the gripper's pose as ``agent.eef_pos``: x, y, z in metres, a
quaternion (w, x, y, z) and how far the gripper is open, 1 to 0, all in the frame of the robot's base.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.standardize.base import ACTION_NAMES, find_standardization
from vla_ft.data.standardize.rotations import euler_from_matrix, matrix_from_quaternion
from vla_ft.deployment.opencv_resize import lanczos4
from vla_ft.deployment.predictor import Predictor
from vla_ft.deployment.simpler import Gripper, HeldGripper, OpenOrClosed, SimplerPolicy, find_setup
from vla_ft.deployment.temporal_aggregation import OpenLoop
from vla_ft.errors import UserError

_POSE = 8
_TOP_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Bridge's rotations are relative to a gripper that points down, not to the base (``widowx_controller.py``)."""
_HOLD = 15


def bridge_proprio(pose: np.ndarray) -> np.ndarray:
    """``eef_pos`` [8] as Bridge's states: x, y, z, roll, pitch, yaw from the top-down pose, openness; float32 [7]."""
    turned = matrix_from_quaternion(np.roll(pose[3:7], -1)) @ _TOP_DOWN.T
    return np.concatenate([pose[:3], euler_from_matrix(turned), pose[7:]]).astype(np.float32)


def fractal_proprio(pose: np.ndarray) -> np.ndarray:
    """``eef_pos`` [8] as Fractal's states: x, y, z, quaternion (x, y, z, w), how far it is closed; float32 [8]."""
    return np.concatenate([pose[:3], np.roll(pose[3:7], -1), 1 - pose[7:]]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class PiZeroSetup:
    """What differs between the two robots."""

    dataset: str
    """Its standardised form is what the policy was trained on."""
    proprio: Callable[[np.ndarray], np.ndarray]
    gripper: Callable[[], Gripper]
    steps: int
    """Actions of a chunk that are executed."""


PIZERO_SETUPS = {
    "widowx_bridge": PiZeroSetup(dataset="bridge_dataset", proprio=bridge_proprio, gripper=OpenOrClosed, steps=4),
    "google_robot": PiZeroSetup(
        dataset="fractal20220817_data", proprio=fractal_proprio, gripper=lambda: HeldGripper(_HOLD), steps=2
    ),
}


class PiZeroInference(SimplerPolicy):
    """π0 behind SIMPLER's ``reset`` and ``step``; in the loop of its fork:

        policy = PiZeroInference("pizero-bridge", "widowx_bridge", statistics="config/bridge_statistics.json")
        policy.reset(env.get_language_instruction())
        raw, action = policy.step_on(obs, env.get_language_instruction())
        env.step(np.concatenate([action["world_vector"], action["rot_axangle"], action["gripper"]]))

    A changed instruction (long tasks) is read with the next chunk and ends no episode, as published.
    """

    def __init__(
        self,
        checkpoint: str | Path | Predictor,
        policy_setup: str = "widowx_bridge",
        *,
        statistics: str | Path | None = None,
        dataset: str | None = None,
        act_steps: int | None = None,
        action_scale: float = 1.0,
        use_bf16: bool = False,
        use_torch_compile: bool = False,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        """``checkpoint``: a run or checkpoint of ours, or open-pi-zero's ``step*.pt`` or the name of a fetched one,
        which needs ``statistics``, the JSON file of its training data, and takes ``settings`` of ``Config``.
        ``dataset``: which one of a mixture. ``act_steps``: actions of a chunk that are executed, by default 4 and 2.
        ``use_bf16`` holds the weights in bfloat16 and computes in it; without it a run of ours computes as it was
        trained, published weights in float32. Raises UserError for a policy of another robot, and for options that a
        given ``Predictor`` has behind it.
        """
        setup = find_setup(policy_setup)
        self.robot = PIZERO_SETUPS[policy_setup]
        steps = self.robot.steps if act_steps is None else act_steps
        super().__init__(setup, OpenLoop(steps), action_scale, self.robot.gripper())
        if isinstance(checkpoint, Predictor):
            _refuse_loaded(
                {"statistics": statistics is not None, "dataset": dataset is not None, "use_bf16": use_bf16,
                 "use_torch_compile": use_torch_compile, "device": device != "auto", **dict.fromkeys(settings, True)}
            )  # fmt: skip
            self.predictor = checkpoint
        else:
            self.predictor = Predictor.load(
                Path(checkpoint),
                device,
                dataset,
                "bf16" if use_bf16 else "run",
                held="bf16" if use_bf16 else "fp32",
                compiled=use_torch_compile,
                statistics=None if statistics is None else Path(statistics),
                settings=settings,
            )
        self._refuse_another_robot(policy_setup)
        _refuse_steps(act_steps, self.predictor.processor.window.action_horizon)
        self.camera, self.size = next(iter(self.predictor.description.cameras.items()))
        self._commands: deque[np.ndarray] = deque()

    def change_task(self, task_description: str) -> None:
        """The next chunk follows the new instruction."""
        self.task = task_description

    def predict(self, image: np.ndarray, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """A chunk float32 [T, 7] in robot units. ``observation``: ``eef_pos`` [8], or ``proprio`` as in the dataset."""
        seen = {f"image_{self.camera}": lanczos4(image, self.size), "proprio": self._proprio(observation)}
        chunk = self.predictor.predict(seen, self.task)
        # As published, a held command is held for so many predicted actions, whether they are executed or not.
        self._commands = deque(self.gripper.step(opened) for opened in chunk[:, 6:7])
        return chunk

    def grip(self, opened: np.ndarray) -> np.ndarray:
        """The command that came with the chunk."""
        return self._commands.popleft()

    def _proprio(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        if "proprio" in observation:
            return np.asarray(observation["proprio"], dtype=np.float32)
        if "eef_pos" not in observation:
            raise UserError(
                "The observation has no 'eef_pos' (the gripper's pose under 'agent'): SIMPLER itself does not give it. "
                "Use the fork allenzren/SimplerEnv, or give proprio= in the dataset's form."
            )
        pose = np.asarray(observation["eef_pos"], dtype=np.float64)
        if pose.shape != (_POSE,) or not pose[3:7].any():
            raise UserError(
                f"'eef_pos' is {pose.tolist()}; expected x, y, z, a quaternion (w, x, y, z) and the gripper's openness."
            )
        return self.robot.proprio(pose)

    def _refuse_another_robot(self, policy_setup: str) -> None:
        about, policy = self.predictor.description, self.predictor.config.policy
        if policy != "pizero":
            raise UserError(f"This is a policy '{policy}', expected 'pizero'.")
        seen, expected = (
            (about.action_dim, about.proprio_dim),
            (len(ACTION_NAMES), len(find_standardization(self.robot.dataset).proprio)),
        )
        if seen != expected:
            raise UserError(
                f"This policy has {seen[0]} action and {seen[1]} proprio dimensions; {policy_setup} has {expected[0]} "
                f"and {expected[1]}. Choose policy_setup=widowx_bridge for Bridge (7) and google_robot for Fractal (8)."
            )


def _refuse_loaded(given: Mapping[str, bool]) -> None:
    """Options of loading, given with a policy that is loaded."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise UserError(
            f"{', '.join(names)}: the Predictor that was given is loaded, and these decide how one is. Expected "
            "none of them: give them to Predictor.load, or give the checkpoint's path here."
        )


def _refuse_steps(act_steps: int | None, horizon: int) -> None:
    if act_steps is not None and not 1 <= act_steps <= horizon:
        raise UserError(
            f"act_steps={act_steps}: a chunk of this policy has {horizon} actions, expected 1 to {horizon} of them to "
            "be executed. Leave it out for the published number."
        )
