"""Datasets of the RT-X mix, and BC-Z: action dictionaries with a gripper of each laboratory's own convention."""

from __future__ import annotations

import numpy as np

from vla_ft.data.standardize.base import JOINTS, POSE_EULER, POSE_QUATERNION, Columns, Numbers, dataset, flat, joined
from vla_ft.data.standardize.gripper import absolute_from_relative, inverted

_MOVE, _TURN, _CLOSE = "action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"
_POSE, _CLIP_POSE = "observation/base_pose_tool_reached", "observation/clip_function_input/base_pose_tool_reached"
_GRIPPED = "observation/gripper_closed"


def _with_relative_gripper(raw: Columns) -> np.ndarray:
    return joined(raw[_MOVE], raw[_TURN], absolute_from_relative(flat(raw[_CLOSE])))


def _with_closedness(raw: Columns) -> np.ndarray:
    """The gripper command is closedness, 0 to 1."""
    return joined(raw[_MOVE], raw[_TURN], inverted(np.clip(flat(raw[_CLOSE]), 0, 1)))


@dataset(
    "fractal20220817_data",
    columns=(_MOVE, _TURN, _CLOSE, _POSE, _GRIPPED),
    images={"primary": "image"},
    proprio=POSE_QUATERNION,
    fps=3,
)
def fractal(raw: Columns) -> Numbers:
    """Google's RT-1 kitchens."""
    return _with_relative_gripper(raw), joined(raw[_POSE], raw[_GRIPPED])


@dataset(
    "kuka",
    columns=(_MOVE, _TURN, _CLOSE, _CLIP_POSE, _GRIPPED),
    images={"primary": "image"},
    proprio=POSE_QUATERNION,
    fps=10,
)
def kuka(raw: Columns) -> Numbers:
    """QT-Opt grasping; its state is stored compressed, which the reader undoes."""
    return _with_relative_gripper(raw), joined(raw[_CLIP_POSE], raw[_GRIPPED])


@dataset(
    "taco_play",
    columns=("action/rel_actions_world", "observation/robot_obs"),
    images={"primary": "rgb_static", "wrist": "rgb_gripper"},
    proprio=POSE_EULER,
    fps=15,
)
def taco_play(raw: Columns) -> Numbers:
    """Play with a Franka in Freiburg; column 6 of its state is the gripper's width, 7 its command."""
    action, state = raw["action/rel_actions_world"], raw["observation/robot_obs"]
    return joined(action[:, :6], np.clip(action[:, -1], 0, 1)), joined(state[:, :6], state[:, 7])


@dataset(
    "jaco_play",
    columns=(_MOVE, _CLOSE, "observation/end_effector_cartesian_pos"),
    images={"primary": "image", "wrist": "image_wrist"},
    proprio=("x", "y", "z", "rx", "ry", "rz", "gripper"),
    fps=10,
)
def jaco_play(raw: Columns) -> Numbers:
    """A Jaco arm that only translates."""
    gripper = absolute_from_relative(flat(raw[_CLOSE]))
    return joined(raw[_MOVE], np.zeros_like(raw[_MOVE]), gripper), joined(raw["observation/end_effector_cartesian_pos"])


@dataset(
    "berkeley_cable_routing",
    columns=(_MOVE, _TURN, "observation/robot_state"),
    images={"primary": "image", "secondary": "top_image", "wrist": "wrist45_image"},
    proprio=JOINTS[:7],
    fps=10,
)
def berkeley_cable_routing(raw: Columns) -> Numbers:
    """The gripper holds the cable throughout."""
    return joined(raw[_MOVE], raw[_TURN], np.zeros(len(raw[_MOVE]))), joined(raw["observation/robot_state"])


@dataset("roboturk", columns=(_MOVE, _TURN, _CLOSE), images={"primary": "front_rgb"}, fps=10)
def roboturk(raw: Columns) -> Numbers:
    """Teleoperated Sawyers, without proprioception."""
    return _with_closedness(raw), None


@dataset("nyu_door_opening_surprising_effectiveness", columns=(_MOVE, _TURN, _CLOSE), images={"wrist": "image"}, fps=3)
def nyu_door_opening(raw: Columns) -> Numbers:
    """Doors opened with a grabber stick: a wrist camera alone."""
    return _with_relative_gripper(raw), None


@dataset(
    "viola",
    columns=(_MOVE, _TURN, _CLOSE, "observation/joint_states", "observation/gripper_states"),
    images={"primary": "agentview_rgb", "wrist": "eye_in_hand_rgb"},
    proprio=JOINTS,
    fps=20,
)
def viola(raw: Columns) -> Numbers:
    """Franka demonstrations of VIOLA."""
    return _with_closedness(raw), joined(raw["observation/joint_states"], raw["observation/gripper_states"])


@dataset(
    "berkeley_autolab_ur5",
    columns=(_MOVE, _TURN, _CLOSE, "observation/robot_state"),
    images={"primary": "image", "wrist": "hand_image"},
    proprio=POSE_QUATERNION,
    fps=5,
)
def berkeley_autolab_ur5(raw: Columns) -> Numbers:
    """A UR5; pose and gripper are columns 6 to 13 of its state."""
    return _with_relative_gripper(raw), joined(raw["observation/robot_state"][:, 6:14])


@dataset(
    "toto",
    columns=(_MOVE, _TURN, "action/open_gripper", "observation/state"),
    images={"primary": "image"},
    proprio=JOINTS[:7],
    fps=30,
)
def toto(raw: Columns) -> Numbers:
    """Train Offline, Test Online: scooping and pouring."""
    return joined(raw[_MOVE], raw[_TURN], raw["action/open_gripper"]), joined(raw["observation/state"])


@dataset(
    "language_table",
    columns=("action", "observation/effector_translation"),
    images={"primary": "rgb"},
    instruction="observation/instruction",
    proprio=("x", "y"),
    fps=10,
)
def language_table(raw: Columns) -> Numbers:
    """Pushing in a plane with a stick: the other movements are zero and the gripper counts as open."""
    n = len(raw["action"])
    return joined(raw["action"], np.zeros((n, 4)), np.ones(n)), joined(raw["observation/effector_translation"])


@dataset(
    "bc_z",
    columns=(
        "action/future/xyz_residual",
        "action/future/axis_angle_residual",
        "action/future/target_close",
        "observation/present/xyz",
        "observation/present/axis_angle",
        "observation/present/sensed_close",
    ),
    images={"primary": "image"},
    proprio=("x", "y", "z", "ax", "ay", "az", "gripper"),
    fps=10,
)
def bc_z(raw: Columns) -> Numbers:
    """BC-Z: its actions list ten future steps, of which the first counts."""
    gripper = inverted(raw["action/future/target_close"][:, :1])
    move, turn = raw["action/future/xyz_residual"][:, :3], raw["action/future/axis_angle_residual"][:, :3]
    proprio = (raw[f"observation/present/{name}"] for name in ("xyz", "axis_angle", "sensed_close"))
    return joined(move, turn, gripper), joined(*proprio)
