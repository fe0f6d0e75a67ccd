"""Datasets that laboratories converted to RLDS themselves: one action vector, a gripper of their own convention."""

from __future__ import annotations

import numpy as np

from vla_ft.data.standardize.base import JOINTS, POSE_EULER, POSE_QUATERNION, Columns, Numbers, dataset, flat, joined
from vla_ft.data.standardize.gripper import inverted
from vla_ft.data.standardize.rotations import euler_from_quaternion

_ACTION, _STATE = "action", "observation/state"
_BOTH = (_ACTION, _STATE)
_TEXT = "language_instruction"
_FRONT_AND_WRIST = {"primary": "image", "wrist": "wrist_image"}


def _clipped_and_inverted(action: np.ndarray) -> np.ndarray:
    """The last column is closedness, roughly -1 to 1; everything below 0 counts as open."""
    return joined(action[:, :6], inverted(np.clip(action[:, -1], 0, 1)))


def _unnamed(width: int) -> tuple[str, ...]:
    return tuple(f"state_{i}" for i in range(width))


@dataset(
    "stanford_hydra_dataset_converted_externally_to_rlds",
    columns=_BOTH,
    images=_FRONT_AND_WRIST,
    instruction=_TEXT,
    proprio=POSE_EULER,
    fps=10,
)
def stanford_hydra(raw: Columns) -> Numbers:
    """HYDRA: the pose's angles are columns 7 to 9, the gripper is third from the end."""
    action, state = raw[_ACTION], raw[_STATE]
    return joined(action[:, :6], inverted(action[:, -1])), joined(state[:, :3], state[:, 7:10], state[:, -3])


@dataset(
    "austin_buds_dataset_converted_externally_to_rlds",
    columns=_BOTH,
    images=_FRONT_AND_WRIST,
    instruction=_TEXT,
    proprio=JOINTS,
    fps=20,
)
def austin_buds(raw: Columns) -> Numbers:
    """BUDS, Franka."""
    return _clipped_and_inverted(raw[_ACTION]), joined(raw[_STATE][:, :8])


@dataset(
    "nyu_franka_play_dataset_converted_externally_to_rlds",
    columns=_BOTH,
    images={"primary": "image", "secondary": "image_additional_view"},
    instruction=_TEXT,
    proprio=POSE_EULER[:6],
    fps=3,
)
def nyu_franka_play(raw: Columns) -> Numbers:
    """Play data whose actions hold joints first, then the pose's movement, the gripper and an end flag."""
    action = raw[_ACTION]
    return joined(action[:, -8:-2], np.clip(action[:, -2], 0, 1)), joined(raw[_STATE][:, -6:])


@dataset(
    "furniture_bench_dataset_converted_externally_to_rlds",
    columns=_BOTH,
    images=_FRONT_AND_WRIST,
    instruction=_TEXT,
    proprio=POSE_QUATERNION,
    fps=10,
)
def furniture_bench(raw: Columns) -> Numbers:
    """Furniture assembly; rotations are quaternions."""
    action, state = raw[_ACTION], raw[_STATE]
    gripper = inverted(np.clip(action[:, -1], 0, 1))
    return joined(action[:, :3], euler_from_quaternion(action[:, 3:7]), gripper), joined(state[:, :7], state[:, -1])


@dataset(
    "ucsd_kitchen_dataset_converted_externally_to_rlds",
    columns=_BOTH,
    images={"primary": "image"},
    instruction=_TEXT,
    proprio=JOINTS[:7],
    fps=2,
)
def ucsd_kitchen(raw: Columns) -> Numbers:
    """The last of eight action columns is an end flag."""
    return joined(raw[_ACTION][:, :-1]), joined(raw[_STATE][:, :7])


@dataset(
    "austin_sailor_dataset_converted_externally_to_rlds",
    "austin_sirius_dataset_converted_externally_to_rlds",
    columns=_BOTH,
    images=_FRONT_AND_WRIST,
    instruction=_TEXT,
    proprio=POSE_QUATERNION,
    fps=20,
)
def austin_sailor_and_sirius(raw: Columns) -> Numbers:
    """Sailor and Sirius, Franka."""
    return _clipped_and_inverted(raw[_ACTION]), joined(raw[_STATE])


@dataset(
    "dlr_edan_shared_control_converted_externally_to_rlds",
    columns=_BOTH,
    images={"primary": "image"},
    instruction=_TEXT,
    proprio=POSE_EULER,
    fps=5,
)
def dlr_edan_shared_control(raw: Columns) -> Numbers:
    """Shared control of a wheelchair's arm."""
    action = raw[_ACTION]
    return joined(action[:, :6], inverted(action[:, -1])), joined(raw[_STATE])


@dataset(
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
    columns=_BOTH,
    images=_FRONT_AND_WRIST,
    instruction=_TEXT,
    proprio=JOINTS,
    fps=20,
)
def iamlab_cmu_pickup_insert(raw: Columns) -> Numbers:
    """Pick up and insert; rotations are quaternions."""
    action = raw[_ACTION]
    pose = joined(action[:, :3], euler_from_quaternion(action[:, 3:7]), action[:, 7])
    return pose, joined(raw[_STATE][:, :8])


@dataset("utaustin_mutex", columns=_BOTH, images=_FRONT_AND_WRIST, instruction=_TEXT, proprio=JOINTS, fps=20)
def utaustin_mutex(raw: Columns) -> Numbers:
    """MUTEX, Franka."""
    return _clipped_and_inverted(raw[_ACTION]), joined(raw[_STATE][:, :8])


@dataset(
    "berkeley_fanuc_manipulation",
    columns=_BOTH,
    images=_FRONT_AND_WRIST,
    instruction=_TEXT,
    proprio=(*JOINTS[:6], "gripper"),
    fps=10,
)
def berkeley_fanuc_manipulation(raw: Columns) -> Numbers:
    """No gripper commands are stored: the measured gripper stands in."""
    state = raw[_STATE]
    return joined(raw[_ACTION], inverted(state[:, 6])), joined(state[:, :7])


@dataset("cmu_stretch", columns=_BOTH, images={"primary": "image"}, instruction=_TEXT, proprio=POSE_EULER, fps=10)
def cmu_stretch(raw: Columns) -> Numbers:
    """A Hello Stretch without rotations; the last of eight action columns is an end flag."""
    state = raw[_STATE]
    return joined(raw[_ACTION][:, :-1]), joined(state[:, :3], np.zeros((len(state), 3)), state[:, -1])


@dataset(
    "fmb_dataset",
    columns=(_ACTION, "observation/eef_pose", "observation/state_gripper_pose"),
    images={"primary": "image_side_1", "secondary": "image_side_2", "wrist": "image_wrist_1"},
    instruction=_TEXT,
    proprio=POSE_QUATERNION,
    fps=10,
)
def fmb(raw: Columns) -> Numbers:
    """Functional Manipulation Benchmark."""
    pose, gripper = raw["observation/eef_pose"], raw["observation/state_gripper_pose"]
    return joined(raw[_ACTION]), joined(pose, flat(gripper))


@dataset("dobbe", columns=_BOTH, images={"primary": "wrist_image"}, instruction=_TEXT, proprio=_unnamed(7), fps=30)
def dobbe(raw: Columns) -> Numbers:
    """Dobb-E: a stick with a camera, in homes."""
    return joined(raw[_ACTION]), joined(raw[_STATE])
