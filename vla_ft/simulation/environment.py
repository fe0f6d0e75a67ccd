"""gym-aloha's bimanual transfer cube with joint control, and pictures only when they are asked for.

gym-aloha's own environment draws three pictures of 480 x 640 at every step, which on a CPU takes a few hundred times as
long as the physics. This wrapper drives the same model through the same task object, so that the same actions give the
same states.
"""

from __future__ import annotations

import mujoco
import numpy as np
from dm_control import mujoco as dm_mujoco
from gym_aloha.constants import ACTIONS, ASSETS_DIR, START_ARM_POSE
from gym_aloha.tasks import sim as aloha_tasks

from vla_ft.errors import UserError, unknown
from vla_ft.simulation.demonstration import CubeContacts, OutOfReachError
from vla_ft.simulation.expert import Targets
from vla_ft.simulation.kinematics import ArmKinematics

ACTION_DIM = len(ACTIONS)
"""14: left then right arm, each six joint angles in radians and the gripper from 0 (closed) to 1 (open)."""
REACH_TOLERANCE = 0.02
"""Metres + radians that inverse kinematics may be off before a target counts as out of reach."""
_HOME_ANGLES = (np.array(START_ARM_POSE[:6], float), np.array(START_ARM_POSE[8:14], float))
_CUBE, _TABLE = "red_box", "table"
_FINGERS = "vx300s_{arm}/10_{finger}_gripper_finger"


class CubeTransfer:
    """The joint-control environment. Use as a context manager: it holds an OpenGL context once something is drawn."""

    def __init__(self, fps: int = 50) -> None:
        """``fps`` control steps a second; it must divide the physics rate (500 a second). gym-aloha uses 50."""
        self.physics = dm_mujoco.Physics.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
        rate = round(1 / self.physics.timestep())
        if fps < 1 or rate % fps:
            raise UserError(
                f"fps={fps} does not fit: the physics run at {rate} steps a second; take a divisor, e.g. 50."
            )
        self.fps = fps
        self._substeps = rate // fps
        self._task = aloha_tasks.TransferCubeTask()
        model = self.physics.model.ptr
        self._arms = (ArmKinematics(model, "left"), ArmKinematics(model, "right"))
        self._angles = _HOME_ANGLES
        self._cube, self._table = model.geom(_CUBE).id, model.geom(_TABLE).id
        self._fingers = {
            arm: {model.geom(_FINGERS.format(arm=arm, finger=finger)).id for finger in ("left", "right")}
            for arm in ("left", "right")
        }
        names = (mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, index) for index in range(model.ncam))
        self.cameras: tuple[str, ...] = tuple(names)

    def __enter__(self) -> CubeTransfer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the OpenGL context; without this the interpreter complains at exit."""
        self.physics.free()

    def reset(self, cube: np.ndarray) -> None:
        """Arms to the start pose, the cube (level) to the position ``cube`` [3]."""
        # gym-aloha's task takes the pose from this list: it has no argument for it.
        aloha_tasks.BOX_POSE[0] = np.concatenate([cube, [1.0, 0.0, 0.0, 0.0]])
        with self.physics.reset_context():
            self._task.initialize_episode(self.physics)
        self._angles = _HOME_ANGLES

    def step(self, action: np.ndarray) -> None:
        """Advance by one control step towards joint targets ``action`` [14]."""
        self._task.before_step(np.asarray(action, np.float64), self.physics)
        self.physics.step(self._substeps)

    def solve(self, targets: Targets) -> np.ndarray:
        """The joint action, float32 [14], that takes the grippers to ``targets``.

        Continues from the last solution since ``reset``, so that a smooth path gives smooth actions. Raises
        OutOfReachError.
        """
        solved = []
        for arm, pose, start in zip(self._arms, (targets.left, targets.right), self._angles, strict=True):
            angles, miss = arm.solve(pose, start)
            if miss > REACH_TOLERANCE:
                raise OutOfReachError(f"target {pose.position.round(3)} missed by {miss:.3f}")
            solved.append(angles)
        self._angles = (solved[0], solved[1])
        action = np.concatenate([solved[0], [targets.left_gripper], solved[1], [targets.right_gripper]])
        return action.astype(np.float32)

    def qpos(self) -> np.ndarray:
        """Measured float64 [14], in the layout and units of an action."""
        return self._task.get_qpos(self.physics)

    def qvel(self) -> np.ndarray:
        """Measured float64 [14], per second."""
        return self._task.get_qvel(self.physics)

    def cube(self) -> np.ndarray:
        """Position of the cube's centre, float64 [3], metres."""
        return self.physics.data.qpos[-7:-4].copy()

    def reward(self) -> int:
        """gym-aloha's reward: 1 touched, 2 lifted by the right arm, 3 touched by the left, 4 held by the left."""
        return self._task.get_reward(self.physics)

    def contacts(self) -> CubeContacts:
        """What the cube touches now."""
        data = self.physics.data
        pairs = [(int(contact.geom1), int(contact.geom2)) for contact in data.contact[: data.ncon]]
        touching = {other for pair in pairs if self._cube in pair for other in pair}
        return CubeContacts(
            left=bool(touching & self._fingers["left"]),
            right=bool(touching & self._fingers["right"]),
            table=self._table in touching,
        )

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """Picture of ``camera``, uint8 [height, width, 3]. Raises UserError for a camera that the scene lacks."""
        if camera not in self.cameras:
            raise unknown("camera", camera, self.cameras)
        return self.physics.render(height=height, width=width, camera_id=camera)
