"""The unified vector: 128 places with a physical meaning, shared by state and action, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla_ft.errors import UserError, unknown
from vla_ft.policies.rdt.config import VectorConfig
from vla_ft.policies.rdt.rotations import to_six, to_three

WIDTH = 128
"""Numbers in the vector."""


def _arm(side: str, start: int) -> dict[str, int]:
    """Names of one arm's 45 places, the first at ``start``."""
    names = {f"{side}arm_joint_{i}_pos": start + i for i in range(10)}
    names |= {f"{side}gripper_joint_{i}_pos": start + 10 + i for i in range(5)}
    names |= {f"{side}gripper_open": start + 10}
    names |= {f"{side}arm_joint_{i}_vel": start + 15 + i for i in range(10)}
    names |= {f"{side}gripper_joint_{i}_vel": start + 25 + i for i in range(5)}
    names |= {f"{side}gripper_open_vel": start + 25}
    names |= {f"{side}eef_pos_{axis}": start + 30 + i for i, axis in enumerate("xyz")}
    names |= {f"{side}eef_angle_{i}": start + 33 + i for i in range(6)}
    names |= {f"{side}eef_vel_{axis}": start + 39 + i for i, axis in enumerate("xyz")}
    return names | {f"{side}eef_angular_vel_{a}": start + 42 + i for i, a in enumerate(("roll", "pitch", "yaw"))}


SLOTS: dict[str, int] = {
    **_arm("", 0),
    **_arm("right_", 0),
    **_arm("left_", 50),
    "base_vel_x": 100,
    "base_vel_y": 101,
    "base_angular_vel": 102,
}
"""Name -> place, as published. A single arm takes the right one's places; 45-49, 95-99 and 103-127 are reserved."""

EULER = ("eef_euler_x", "eef_euler_y", "eef_euler_z")
QUATERNION = ("eef_quat_x", "eef_quat_y", "eef_quat_z", "eef_quat_w")
_SIDES = ("", "right_", "left_")
_SHORTEST = 1e-8

_ONE_ARM = (*(f"arm_joint_{i}_pos" for i in range(6)), "gripper_open")
TWO_ARMS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _ONE_ARM)
"""ALOHA's 14 numbers: left arm, left gripper, right arm, right gripper."""

PRESETS: dict[str, VectorConfig] = {
    "aloha": VectorConfig(action=TWO_ARMS),
    # Ranges of the published Agilex recordings: commands come from the master arms, states from the puppets.
    "agilex": VectorConfig(
        action=TWO_ARMS,
        state_divisors={"left_gripper_open": 4.7908, "right_gripper_open": 4.7888},
        action_divisors={"left_gripper_open": 11.8997, "right_gripper_open": 13.9231},
    ),
}


def find_vector(choice: str | VectorConfig) -> VectorConfig:
    """A published mapping by name, or one's own."""
    if isinstance(choice, str) and choice not in PRESETS:
        raise unknown("mapping to the unified vector", choice, PRESETS)
    return PRESETS[choice] if isinstance(choice, str) else choice


class VectorMap:
    """A robot's numbers [..., P] to unified vectors [..., 128] and back.

    ``names`` are the slots of the P numbers in order. Raises UserError for a name that is unknown or given twice, an
    incomplete rotation, and a divisor of a slot that is not used.
    """

    def __init__(self, names: Sequence[str], divisors: Mapping[str, float], what: str) -> None:
        self.names, self.what = tuple(names), what
        self._turns = _rotations(self.names, what)
        turned = {column for columns, _, _ in self._turns for column in columns}
        known = (*SLOTS, *(side + name for side in _SIDES for name in (*EULER, *QUATERNION)))
        for name in self.names:
            if name not in known:
                raise unknown(f"slot of the unified vector (model.vector.{what})", name, known)
        for name in divisors:
            if name not in self.names:
                raise unknown(f"slot with a divisor (model.vector.{what}_divisors)", name, self.names)
            if self.names.index(name) in turned:
                raise UserError(
                    f"model.vector.{what}_divisors names '{name}': a rotation enters the vector as six numbers without "
                    "a unit, which nothing divides. Remove it; angles are in rad."
                )
        self._columns = [column for column in range(len(self.names)) if column not in turned]
        self._places = [SLOTS[self.names[column]] for column in self._columns]
        self._divisors = np.array([divisors.get(self.names[column], 1.0) for column in self._columns])
        taken = [*self._places, *(start + i for _, _, start in self._turns for i in range(6))]
        twice = sorted({place for place in taken if taken.count(place) > 1})
        if twice:
            raise UserError(
                f"model.vector.{what} fills place {twice[0]} of the unified vector twice. Each of "
                f"{', '.join(self.names)} needs a place of its own."
            )
        self.mask = np.zeros(WIDTH, dtype=np.float32)
        self.mask[taken] = 1.0

    @property
    def turns(self) -> bool:
        """Whether any rotation enters as angles or a quaternion."""
        return bool(self._turns)

    def to_vector(self, values: np.ndarray) -> np.ndarray:
        """[..., P] in robot units to [..., 128], float64; places that are not used are 0."""
        if values.shape[-1] != len(self.names):
            raise UserError(
                f"The {self.what} has {values.shape[-1]} dimensions, model.vector.{self.what} names {len(self.names)}: "
                f"{', '.join(self.names)}. Name one slot for each dimension, in the dataset's order."
            )
        vector = np.zeros((*values.shape[:-1], WIDTH))
        vector[..., self._places] = values[..., self._columns] / self._divisors
        for columns, kind, start in self._turns:
            if kind == QUATERNION:
                self._refuse_zero(values[..., columns])
            vector[..., start : start + 6] = to_six(values[..., columns])
        return vector

    def _refuse_zero(self, quaternions: np.ndarray) -> None:
        if (np.linalg.norm(quaternions, axis=-1) < _SHORTEST).any():
            raise UserError(
                f"The {self.what} holds a quaternion of four zeros, which is no rotation. Mend the recording: "
                "`vla-ft data inspect` shows where a dimension is 0."
            )

    def from_vector(self, vector: np.ndarray) -> np.ndarray:
        """[..., 128] to [..., P] in robot units, float32."""
        values = np.zeros((*vector.shape[:-1], len(self.names)))
        values[..., self._columns] = vector[..., self._places] * self._divisors
        for columns, kind, start in self._turns:
            values[..., columns] = to_three(vector[..., start : start + 6], quaternion=kind == QUATERNION)
        return values.astype(np.float32)

    def errors_by_name(self, errors: np.ndarray) -> np.ndarray:
        """Absolute errors of unified vectors [..., 128] by the robot's numbers [..., P], undivided.

        The numbers of a rotation share the mean over its six places.
        """
        found = np.zeros((*errors.shape[:-1], len(self.names)))
        found[..., self._columns] = errors[..., self._places]
        for columns, _, start in self._turns:
            found[..., columns] = errors[..., start : start + 6].mean(-1, keepdims=True)
        return found


def _rotations(names: tuple[str, ...], what: str) -> list[tuple[list[int], tuple[str, ...], int]]:
    """(columns, kind, first place) of every rotation that is given as angles or as a quaternion."""
    found: list[tuple[list[int], tuple[str, ...], int]] = []
    for side in _SIDES:
        for kind in (EULER, QUATERNION):
            wanted = [side + name for name in kind]
            given = [name for name in wanted if name in names]
            if given and len(given) < len(wanted):
                raise UserError(
                    f"model.vector.{what} names {', '.join(given)} without {', '.join(set(wanted) - set(given))}: a "
                    "rotation needs all of its numbers."
                )
            if given:
                found.append(([names.index(name) for name in wanted], kind, SLOTS[f"{side}eef_angle_0"]))
    return found
