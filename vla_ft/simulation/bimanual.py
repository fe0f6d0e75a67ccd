"""The transfer-cube scene as a robot that a policy drives: ``observe`` and ``command``, in simulated time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vla_ft.simulation.environment import CubeTransfer

PLACES = ("external", "right_wrist", "left_wrist")


@dataclass(frozen=True)
class View:
    """``qpos`` float64 [14], and the pictures uint8 [H, W, 3] of ``PLACES``, None where there is no camera."""

    qpos: np.ndarray
    pictures: tuple[np.ndarray | None, ...]


class SimulatedArms:
    """Two arms in MuJoCo. A command is one control step; what was achieved is kept in ``rewards``."""

    def __init__(
        self, scene: CubeTransfer, cameras: Mapping[str, str | None], size: tuple[int, int] = (480, 640)
    ) -> None:
        """``cameras``: place -> camera of the scene, or None; ``size``: (height, width) of pictures."""
        self.scene, self.size = scene, size
        self.cameras = tuple(cameras.get(place) for place in PLACES)
        self.rewards: list[int] = []

    def observe(self) -> View:
        """Joints now, and a picture of each camera."""
        pictures = tuple(None if name is None else self.scene.render(name, *self.size) for name in self.cameras)
        return View(self.scene.qpos(), pictures)

    def command(self, action: np.ndarray) -> None:
        """Advance by one control step towards joint targets [14]."""
        self.scene.step(action)
        self.rewards.append(self.scene.reward())
