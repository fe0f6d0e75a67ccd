"""One attempt at the transfer cube: run the expert without pictures, judge it, run its actions again with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_ft.simulation.expert import CUBE_RANGE, DURATION, Targets, plan_transfer

DROP_HEIGHT = 0.05
"""Height of the cube's centre at the start, metres, as in gym-aloha: it falls 3 cm in the first steps."""
SETTLED = 0.2
"""Seconds at the end for which the left gripper must hold the cube."""
FULL_REWARD = 4


class OutOfReachError(Exception):
    """An end-effector target that an arm cannot take."""


@dataclass(frozen=True)
class CubeContacts:
    """What the cube touches: a finger of either gripper, the table."""

    left: bool = False
    right: bool = False
    table: bool = False

    @property
    def handed_over(self) -> bool:
        """In the left gripper alone: what an attempt must end with."""
        return self.left and not self.right and not self.table


class Simulator(Protocol):
    """What recording needs of an environment; ``vla_ft.simulation.environment.CubeTransfer`` is the real one."""

    fps: int
    cameras: tuple[str, ...]

    def reset(self, cube: np.ndarray) -> None:
        """Start pose; cube centre at [3]."""

    def solve(self, targets: Targets) -> np.ndarray:
        """Joint action float32 [14]; raises OutOfReachError."""

    def step(self, action: np.ndarray) -> None:
        """One control step."""

    def qpos(self) -> np.ndarray:
        """Float64 [14]."""

    def qvel(self) -> np.ndarray:
        """Float64 [14]."""

    def contacts(self) -> CubeContacts:
        """What the cube touches now."""

    def reward(self) -> int:
        """gym-aloha's reward now, 0 to 4."""

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """Picture uint8 [height, width, 3]."""

    def close(self) -> None:
        """Free what drawing needs."""


@dataclass(frozen=True)
class Start:
    """How an attempt begins: where the cube is, and where the expert takes it to be (float64 [3], metres)."""

    cube: np.ndarray
    believed: np.ndarray


@dataclass(frozen=True)
class Frame:
    """One step as it is recorded: state and pictures before ``action`` is taken."""

    qpos: np.ndarray
    qvel: np.ndarray
    images: dict[str, np.ndarray]
    action: np.ndarray


def draw_start(seed: int, attempt: int, noise: float = 0.0) -> Start:
    """The start of attempt number ``attempt``: a function of the two numbers alone, uniform over gym-aloha's square.

    ``noise``: standard deviation in metres of the expert's error about x and y.
    """
    generator = np.random.default_rng([seed, attempt])
    (x_from, x_to), (y_from, y_to) = CUBE_RANGE
    cube = np.array([generator.uniform(x_from, x_to), generator.uniform(y_from, y_to), DROP_HEIGHT])
    return Start(cube, cube + np.append(noise * generator.standard_normal(2), 0.0))


def attempt_transfer(simulator: Simulator, start: Start) -> tuple[np.ndarray, str | None]:
    """Run the expert from ``start`` without pictures: its actions float32 [steps, 14], and why it failed, if it did."""
    simulator.reset(start.cube)
    plan = plan_transfer(start.believed)
    steps = round(DURATION * simulator.fps)
    actions, contacts = [], []
    for step in range(steps):
        try:
            # The action of a step is where the arms should be at its end.
            actions.append(simulator.solve(plan.at((step + 1) / simulator.fps)))
        except OutOfReachError:
            return np.array(actions), "a target was out of reach"
        simulator.step(actions[-1])
        contacts.append(simulator.contacts())
    return np.array(actions), judge(contacts, simulator.reward(), simulator.fps)


def replay(
    simulator: Simulator,
    start: Start,
    actions: np.ndarray,
    cameras: Sequence[str],
    size: tuple[int, int],
    keep: Callable[[Frame], None],
) -> str | None:
    """Run ``actions`` again from ``start``, hand every step with its pictures to ``keep``; why it failed, if it did."""
    simulator.reset(start.cube)
    contacts = []
    for action in actions:
        images = {camera: simulator.render(camera, *size) for camera in cameras}
        keep(Frame(simulator.qpos(), simulator.qvel(), images, action))
        simulator.step(action)
        contacts.append(simulator.contacts())
    return judge(contacts, simulator.reward(), simulator.fps)


def judge(contacts: Sequence[CubeContacts], final_reward: int, fps: int) -> str | None:
    """None for a success, else the stage that failed. ``contacts``: one entry a step.

    Stricter than gym-aloha, which asks for one moment of reward 4: the left gripper alone must hold it at the end.
    """
    ending = contacts[-max(1, round(SETTLED * fps)) :]
    if all(c.handed_over for c in ending):
        return None if final_reward == FULL_REWARD else f"gym-aloha's reward ended at {final_reward}"
    if not any(c.right for c in contacts):
        return "the cube was not touched"
    landed = next((index for index, c in enumerate(contacts) if c.table), 0)  # it starts in the air
    if not any(c.right and not c.table for c in contacts[landed:]):
        return "the cube was not lifted"
    if not any(c.left and not c.table for c in contacts):
        return "the cube was not handed over"
    if any(c.right for c in ending):
        return "the right gripper did not let go"
    return "the cube was dropped"
