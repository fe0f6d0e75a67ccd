"""What a standardisation is, and the table of them: raw columns of an episode in, action and proprioception out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vla_ft.errors import UserError, unknown

Columns = Mapping[str, np.ndarray]
"""Raw numeric columns of a whole episode, time first, by their flattened name (``observation/state``)."""
Numbers = tuple[np.ndarray, np.ndarray | None]
"""Action float32 [n, 7] and proprioception float32 [n, P], or None where the dataset has none."""

ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
ACTION_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1 open, 0 closed")
GRIPPER = "absolute command: 1 open, 0 closed"
POSE_EULER = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
POSE_QUATERNION = ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper")
JOINTS = (*(f"joint_{i}" for i in range(7)), "gripper")
_UNITS = {"x": "m", "y": "m", "z": "m", "roll": "rad", "pitch": "rad", "yaw": "rad"}


@dataclass(frozen=True, kw_only=True)
class Standardization:
    """One dataset: which raw columns are read, what they become, and what the numbers mean.

    ``numbers`` is pure: it sees numeric columns of a whole episode (relabelling and gripper rules look ahead) and never
    an image. ``images`` maps a role (primary, secondary, wrist) to the raw camera. Steps are shifted by ``drop_first``
    and end ``drop_last`` earlier than in the raw episode. ``fps``: control frequency as listed with RDT
    (dataset_control_freq.json).
    """

    name: str
    columns: tuple[str, ...]
    numbers: Callable[[Columns], Numbers]
    images: dict[str, str]
    instruction: str
    proprio: tuple[str, ...]
    fps: float
    drop_first: int = 0
    drop_last: int = 0
    version: int = 1
    """Raise it when the same columns begin to give other numbers: statistics are kept by it."""

    @property
    def proprio_units(self) -> tuple[str, ...]:
        """One unit a proprioceptive dimension; empty where the dataset does not say."""
        return tuple(_UNITS.get(name, "rad" if name.startswith("joint_") else "") for name in self.proprio)

    def length(self, raw: int) -> int:
        """Steps that remain of a raw episode."""
        return max(0, raw - self.drop_first - self.drop_last)


STANDARDIZATIONS: dict[str, Standardization] = {}
"""Dataset name, as in its published folder -> how it is read. ``dataset`` fills it."""


def dataset(
    *names: str,
    columns: tuple[str, ...],
    images: dict[str, str],
    fps: float,
    proprio: tuple[str, ...] = (),
    instruction: str = "observation/natural_language_instruction",
    drop_first: int = 0,
    drop_last: int = 0,
) -> Callable[[Callable[[Columns], Numbers]], Callable[[Columns], Numbers]]:
    """Register a function as the standardisation of ``names``."""

    def register(numbers: Callable[[Columns], Numbers]) -> Callable[[Columns], Numbers]:
        for name in names:
            STANDARDIZATIONS[name] = Standardization(
                name=name,
                columns=columns,
                numbers=numbers,
                images=images,
                instruction=instruction,
                proprio=proprio,
                fps=fps,
                drop_first=drop_first,
                drop_last=drop_last,
            )
        return numbers

    return register


def find_standardization(name: str) -> Standardization:
    """The standardisation of that name. Raises UserError."""
    if name not in STANDARDIZATIONS:
        raise unknown("standardisation", name, STANDARDIZATIONS)
    return STANDARDIZATIONS[name]


def joined(*parts: np.ndarray) -> np.ndarray:
    """Columns [n] or [n, d] side by side, float32 [n, D]."""
    columns = [np.asarray(part, dtype=np.float32) for part in parts]
    return np.concatenate([c[:, None] if c.ndim == 1 else c for c in columns], axis=1)


def flat(column: np.ndarray) -> np.ndarray:
    """A column [n] or [n, 1] as [n]."""
    return np.asarray(column).reshape(len(column))


def need_width(name: str, column: np.ndarray, width: int) -> np.ndarray:
    """The column [n, width]. Raises UserError for another width: its numbers would mean something else."""
    if column.ndim != 2 or column.shape[1] != width:
        raise UserError(
            f"'{name}' has shape {tuple(column.shape)}, expected [steps, {width}]. This standardisation is for another "
            "layout of the dataset: choose another with data.mix.<name>.standardize."
        )
    return column
