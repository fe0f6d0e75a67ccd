"""The simulated arms as a robot that the chunk loop drives. The scene is a stand-in: MuJoCo is not needed here."""

from __future__ import annotations

import numpy as np
import torch

from vla_ft.deployment.bimanual_loop import LoopConfig, drive
from vla_ft.simulation.bimanual import SimulatedArms


class Scene:
    """Arms that are where they were told to be; the reward counts steps."""

    def __init__(self) -> None:
        self.joints = np.zeros(14)
        self.drawn: list[tuple[str, int, int]] = []

    def qpos(self) -> np.ndarray:
        return self.joints

    def step(self, action: np.ndarray) -> None:
        self.joints = np.asarray(action, dtype=np.float64)

    def reward(self) -> int:
        return min(4, round(float(self.joints[0]) * 10))

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        self.drawn.append((camera, height, width))
        return np.zeros((height, width, 3), dtype=np.uint8)


class Up:
    """Raises the first joint by 0.1 an action."""

    def step(self, proprio: np.ndarray, images: list[np.ndarray | None], text_embeds: object) -> torch.Tensor:
        assert [image is None for image in images[3:]] == [False, True, False]
        chunk = torch.from_numpy(np.tile(proprio, (3, 1)))
        chunk[:, 0] += 0.1 * torch.arange(1, 4)
        return chunk[None].float()

    def command_of(self, proprio: np.ndarray) -> np.ndarray:
        return proprio


def test_a_policy_drives_the_scene_until_it_succeeds() -> None:
    scene = Scene()
    robot = SimulatedArms(scene, {"external": "top", "left_wrist": "left"}, (6, 8))  # type: ignore[arg-type]
    config = LoopConfig(interpolate=False, jpeg=None)
    sent = drive(Up(), robot, "go", config, done=lambda: 4 in robot.rewards)
    assert sent == 4 and robot.rewards == [1, 2, 3, 4]
    # Twice for a chunk: now, and one action before the next look.
    assert scene.drawn == [("top", 6, 8), ("left", 6, 8)] * 3
