"""Bridge V2 in its three copies, and a dataset of one's own in the same form."""

from __future__ import annotations

import numpy as np

from vla_ft.data.standardize.base import POSE_EULER, Columns, Numbers, dataset, joined, need_width
from vla_ft.data.standardize.gripper import binarized

_STATE = "observation/state"


def achieved_movement(state: np.ndarray) -> np.ndarray:
    """Movement float32 [n - 1, 6] that the arm made, from poses [n, >=6]: what Bridge's commands are replaced by."""
    return np.diff(np.asarray(state, dtype=np.float32)[:, :6], axis=0)


def relabeled(action: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Actions [n - 1, 7]: achieved movement, commanded gripper. The last step has no successor and is dropped."""
    return joined(achieved_movement(state), action[:-1, -1])


def _from_website(raw: Columns, first: int) -> Numbers:
    action, state = need_width("action", raw["action"], 7)[first:], raw[_STATE][first:]
    binary = joined(action[:, :6], binarized(action[:, -1]))
    return relabeled(binary, state), np.asarray(state[:-1], dtype=np.float32)


@dataset(
    "bridge_orig",
    columns=("action", _STATE),
    images={"primary": "image_0", "secondary": "image_1"},
    instruction="language_instruction",
    proprio=POSE_EULER,
    fps=5,
    drop_first=1,
    drop_last=1,
)
def bridge_orig(raw: Columns) -> Numbers:
    """Bridge V2 from its website as OpenVLA and CogACT read it: the first step, whose action is zero, is dropped."""
    return _from_website(raw, first=1)


@dataset(
    "bridge_dataset",
    columns=("action", _STATE),
    images={"primary": "image_0", "secondary": "image_1"},
    instruction="language_instruction",
    proprio=POSE_EULER,
    fps=5,
    drop_last=1,
)
def bridge_dataset(raw: Columns) -> Numbers:
    """The same files as Octo and open-pi-zero read them: the first step stays."""
    return _from_website(raw, first=0)


@dataset(
    "bridge_oxe",
    columns=("action/world_vector", "action/rotation_delta", "action/open_gripper", _STATE),
    images={"primary": "image", "secondary": "image_1"},
    proprio=POSE_EULER,
    fps=5,
    drop_first=1,
    drop_last=1,
)
def bridge_oxe(raw: Columns) -> Numbers:
    """The copy in the Open X-Embodiment bucket."""
    action = joined(raw["action/world_vector"], raw["action/rotation_delta"], raw["action/open_gripper"])[1:]
    state = raw[_STATE][1:]
    return relabeled(action, state), np.asarray(state[:-1], dtype=np.float32)


@dataset(
    "custom_finetuning",
    columns=("action",),
    images={"primary": "image"},
    instruction="language_instruction",
    fps=5,
)
def custom_finetuning(raw: Columns) -> Numbers:
    """CogACT's form of one's own data: 7 actions, already relative, gripper 0 to 1. Nothing is changed."""
    return np.asarray(need_width("action", raw["action"], 7), dtype=np.float32), None
