"""Driving a two-armed robot with chunks: look, plan, play the chunk slowly enough, look again. No ROS in here.

A robot is anything with ``observe`` and ``command``: a ROS node, a serial line, a simulation.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from vla_ft.errors import UserError

GRIPPERS = (6, 13)
"""Places of the grippers among ALOHA's 14 numbers."""


@dataclass(frozen=True)
class Seen:
    """What a robot sees: ``qpos`` float [14] in its own units, and uint8 [H, W, 3] RGB pictures or None."""

    qpos: np.ndarray
    external: np.ndarray | None
    right_wrist: np.ndarray | None = None
    left_wrist: np.ndarray | None = None

    @property
    def pictures(self) -> tuple[np.ndarray | None, ...]:
        """In the order of the policy."""
        return self.external, self.right_wrist, self.left_wrist


class View(Protocol):
    """``Seen``, or what a robot of its own has instead."""

    @property
    def qpos(self) -> np.ndarray:
        """float [14] in its own units."""

    @property
    def pictures(self) -> tuple[np.ndarray | None, ...]:
        """External, right wrist, left wrist."""


class BimanualRobot(Protocol):
    """A robot of two arms. ``command`` returns when the next command may come: it keeps the rate."""

    def observe(self) -> View:
        """What it sees now."""

    def command(self, action: np.ndarray) -> None:
        """Go to joint targets float32 [14]."""


class ChunkPolicy(Protocol):
    """``RoboticDiffusionTransformerModel``, or anything with its ``step``."""

    def step(
        self, proprio: np.ndarray, images: list[np.ndarray | None], text_embeds: torch.Tensor | str
    ) -> torch.Tensor:
        """Commands [1, H, 14]."""

    def command_of(self, proprio: np.ndarray) -> np.ndarray:
        """The command float32 [14] that stands for measured joints [14]: where the first motion starts."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How chunks are played. The defaults are the published ones."""

    ticks: int = 10_000
    """Commands in all."""
    execute: int | None = None
    """Actions of a chunk before the next look; None plays all of it."""
    joint_step: float = 0.01
    """Most that a joint moves in one command, rad."""
    gripper_step: float = 0.2
    """Most that a gripper moves in one command, in the units of commands."""
    interpolate: bool = True
    """Whether larger moves are cut into commands of that size; False sends actions as they are."""
    jpeg: int | None = 95
    """Pass pictures through a JPEG of this quality, as the training frames were; None for frames that were not."""


def drive(
    policy: ChunkPolicy,
    robot: BimanualRobot,
    instruction: torch.Tensor | str,
    config: LoopConfig | None = None,
    done: Callable[[], bool] = lambda: False,
) -> int:
    """Run until ``config.ticks`` commands were sent or ``done()``; returns how many. Raises UserError.

    The first motion starts at the command that stands for where the robot is, every other at the last command.
    """
    config = config or LoopConfig()
    past: tuple[np.ndarray | None, ...] = (None, None, None)
    sent, last = 0, None
    while sent < config.ticks and not done():
        seen = robot.observe()
        now = tuple(_through_jpeg(picture, config.jpeg) for picture in seen.pictures)
        chunk = policy.step(seen.qpos, [*past, *now], instruction)[0].numpy()
        last = policy.command_of(seen.qpos) if last is None else last
        actions = chunk[: config.execute]
        for number, action in enumerate(actions, 1):
            if number == len(actions):
                # The older picture is one action old, as in training, not one chunk.
                past = tuple(_through_jpeg(picture, config.jpeg) for picture in robot.observe().pictures)
            for command in approach(last, action, config) if config.interpolate else (action,):
                if sent >= config.ticks or done():
                    return sent
                robot.command(command)
                sent += 1
            last = action
    return sent


def approach(start: np.ndarray, target: np.ndarray, config: LoopConfig) -> Iterator[np.ndarray]:
    """Commands float32 [14] on the straight line from ``start`` to ``target``, none moving by more than allowed."""
    most = np.full(len(target), config.joint_step)
    most[[place for place in GRIPPERS if place < len(target)]] = config.gripper_step
    if most.min() <= 0:
        raise UserError(f"joint_step {config.joint_step} and gripper_step {config.gripper_step} must be above 0.")
    count = max(1, int(np.ceil((np.abs(target - start) / most).max() - 1e-6)))
    for part in range(1, count + 1):
        yield (start + (target - start) * (part / count)).astype(np.float32)


def _through_jpeg(picture: np.ndarray | None, quality: int | None) -> np.ndarray | None:
    if picture is None or quality is None:
        return picture
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
