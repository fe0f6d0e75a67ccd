"""The sample contract: what one training example looks like before batching, the same for every dataset format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

IMAGE_PREFIX = "image_"
"""Observation keys of cameras are ``image_<camera>``."""


ActionKind = Literal["joint", "end_effector", "unknown"]
ActionMode = Literal["absolute", "delta", "unknown"]


class Task(TypedDict):
    """What the robot was told to do."""

    language_instruction: str


class Sample(TypedDict):
    """One training example. Arrays have time first; T is the observation window, oldest first.

    ``observation``: ``image_<camera>`` uint8 [T, H, W, 3], ``proprio`` float32 [T, P], ``timestep`` int32 [T], where a
    description has ``environment_names`` also ``env_state`` float32 [T, E],
    ``pad_mask`` bool [T] (True where the frame lies inside the episode; others repeat the nearest real frame).
    ``action``: float32 [horizon, A], robot units. ``action_pad_mask``: bool [horizon], True where real; steps past the
    end repeat the last action. One mask per step serves every dimension of that step.
    """

    observation: dict[str, np.ndarray]
    action: np.ndarray
    action_pad_mask: np.ndarray
    task: Task
    dataset_name: str


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """What a dataset's numbers mean. It travels with checkpoints, so that no policy runs on the wrong robot.

    ``cameras`` maps a name to (height, width) in pixels. Names and units have one entry per dimension. What a dataset
    does not record is ``unknown``.
    """

    name: str
    cameras: dict[str, tuple[int, int]]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    proprio_names: tuple[str, ...]
    proprio_units: tuple[str, ...]
    action_kind: ActionKind
    action_mode: ActionMode
    gripper: str
    fps: float
    gripper_dims: tuple[int, ...] = ()
    """Action dimensions that command a gripper absolutely, 0 to 1: policies that scale actions leave them as they are,
    and relative actions hold them past an episode's end."""
    environment_names: tuple[str, ...] = ()
    """Dimensions of ``env_state``, where objects are (LeRobot's ``observation.environment_state``)."""
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of a mixture: ``fps`` of each dataset by name, 0 where it is not known. Empty for a single dataset."""

    def __post_init__(self) -> None:
        for part in ("action", "proprio"):
            names, units = getattr(self, f"{part}_names"), getattr(self, f"{part}_units")
            if len(names) != len(units):
                raise ValueError(f"{part}: {len(names)} names but {len(units)} units")

    @property
    def action_dim(self) -> int:
        """Number of action dimensions A."""
        return len(self.action_names)

    @property
    def is_gripper(self) -> np.ndarray:
        """bool [A]: which action dimensions are ``gripper_dims``."""
        return np.isin(np.arange(self.action_dim), self.gripper_dims)

    @property
    def proprio_dim(self) -> int:
        """Number of proprioceptive dimensions P."""
        return len(self.proprio_names)

    def of(self, dataset: str | None) -> DatasetDescription:
        """The same at the rate of one dataset of a mixture; itself for a name that ``rates`` does not have."""
        known = dataset is not None and dataset in self.rates
        return dataclasses.replace(self, fps=self.rates[dataset]) if known else self  # type: ignore[index]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for checkpoints."""
        values = dataclasses.asdict(self)
        if not self.rates:  # files that recorders began before go on unchanged
            del values["rates"]
        return values

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DatasetDescription:
        """Inverse of ``to_json``."""
        lists = {k: tuple(v) for k, v in data.items() if isinstance(v, list)}
        cameras = {name: (int(size[0]), int(size[1])) for name, size in data["cameras"].items()}
        return cls(**{**data, **lists, "cameras": cameras})
