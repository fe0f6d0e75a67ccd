"""Drive the bimanual simulation with a fine-tuned RDT: record, fine-tune, then run this (environment with `sim`).

    vla-ft record output=datasets/cube episodes=50 cameras=[top,left_wrist,right_wrist]
    vla-ft embed-language data.path=datasets/cube
    vla-ft train recipe=rdt-170m-16gb data.path=datasets/cube model.vector=aloha \\
        model.cameras.external=top model.cameras.right_wrist=right_wrist model.cameras.left_wrist=left_wrist
    python examples/rdt/drive_simulation.py run=runs/rdt-170m-16gb ticks=400 \\
        instruction="pick up the red cube with the right arm and hand it over to the left arm"
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_ft.config import from_arguments
from vla_ft.deployment.bimanual_loop import LoopConfig, drive
from vla_ft.deployment.rdt_step import RoboticDiffusionTransformerModel
from vla_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """What this script takes."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's own form)

    run: str
    instruction: str
    dataset: str | None = None
    """Whose robot it is, of a run on several datasets."""
    embeddings: str | None = None
    """This machine's folder of embeddings; null takes the run's."""
    ticks: int = 400
    execute: int | None = None
    seed: int = 0
    device: str = "auto"
    output: str | None = None
    """A ``.json`` file for the numbers."""


def main(words: list[str]) -> int:
    """Drive once and say what was achieved."""
    config = from_arguments(DriveConfig, words, "drive_simulation.py")
    from vla_ft.simulation.rendering import select_backend

    select_backend()
    from vla_ft.simulation.bimanual import SimulatedArms
    from vla_ft.simulation.environment import CubeTransfer
    from vla_ft.simulation.expert import CUBE_HALF, CUBE_RANGE

    policy = RoboticDiffusionTransformerModel.of_run(
        Path(config.run), dataset=config.dataset, device=config.device, embeddings=config.embeddings
    )
    assert policy.description is not None  # of_run gives it
    cameras, sizes = vars(policy.model.config.cameras), policy.description.cameras
    place = np.random.default_rng(config.seed).uniform(*np.array(CUBE_RANGE).T)
    rate = round(policy.description.fps)  # what the policy is told may be 0, unknown
    with CubeTransfer(fps=rate) as scene:
        scene.reset(np.array([*place, CUBE_HALF]))
        robot = SimulatedArms(scene, cameras, next(iter(sizes.values())))
        # The simulation reaches a target in one step, and its frames were never JPEGs.
        loop = LoopConfig(ticks=config.ticks, execute=config.execute, interpolate=False, jpeg=None)
        sent = drive(policy, robot, config.instruction, loop, done=lambda: 4 in robot.rewards)
        numbers = {
            "command": " ".join(["python examples/rdt/drive_simulation.py", *map(shlex.quote, words)]),
            "hz": rate,
            "commands": sent,
            "best_reward": max(robot.rewards, default=0),
            "cube": place.round(3).tolist(),
            "joints_at_the_end": scene.qpos().round(4).tolist(),
        }
    if config.output is not None:
        Path(config.output).write_text(json.dumps(numbers, indent=1))
    print(f"{sent} commands, best reward {numbers['best_reward']} of 4, cube at {numbers['cube']}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except UserError as mistake:
        raise SystemExit(f"drive_simulation.py: {mistake}") from None
