"""A small real dataset with something to learn, written to disk as ALOHA HDF5 and read like any other.

A coloured disc lies somewhere in the picture. Its place decides the pose that the joints approach, so a policy must see
it to predict well; joint positions decide how much of the way is left. The action is a function of picture and joints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vla_ft.data.formats.aloha_layout import list_episodes
from vla_ft.data.formats.writer import EpisodeWriter
from vla_ft.errors import UserError

MARKER = "mock.json"
"""File beside the episodes: the parameters, and the hash of what was written."""
_GENERATOR = 1  # raise it when the same parameters begin to give other data
_APPROACH = 0.15
_FOLLOW = 0.8
_GRIPPER_OPENS_AT = 0.3


@dataclass(frozen=True, kw_only=True)
class MockConfig:
    """What to generate. ``image_size``: (height, width). Episodes have ``min_length`` to ``max_length`` steps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    episodes: int = 8
    min_length: int = 30
    max_length: int = 60
    image_size: tuple[int, int] = (48, 64)
    cameras: tuple[str, ...] = ("top",)
    action_dim: int = 14
    seed: int = 0
    compress: bool = False

    def __post_init__(self) -> None:
        if self.episodes < 1 or not 1 <= self.min_length <= self.max_length or not self.cameras or self.action_dim < 2:
            raise UserError(
                f"Cannot generate {self}. Expected at least 1 episode, 1 camera and 2 action dimensions, and "
                "1 <= min_length <= max_length."
            )
        if self.seed < 0:
            raise UserError(f"The mock's seed is {self.seed}, expected 0 or more.")
        if min(self.image_size) < 8:
            raise UserError(f"Mock images of {self.image_size} pixels show nothing. Expected at least (8, 8).")

    def key(self) -> str:
        """A short name of these parameters."""
        text = json.dumps({"generator": _GENERATOR, **dataclasses.asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_mock(folder: Path | str, config: MockConfig) -> Path:
    """Return the dataset of ``config`` under ``folder`` (a sub-folder named by its parameters), writing it when it is
    not there yet.

    It appears whole or not at all, and processes that ask at the same time get the same one. Raises UserError when the
    disk is full or the files were changed since they were written.
    """
    parent = Path(folder)
    path = parent / f"mock_{config.key()}"
    with _only_one_writer(parent):
        if path.exists():
            _refuse_changed(path)
            return path
        unfinished = parent / f".{path.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed writer: we hold the lock
        try:
            for episode in range(config.episodes):
                _write_episode(unfinished, config, episode)
            marker = {"parameters": dataclasses.asdict(config), "sha256": _content_hash(unfinished)}
            (unfinished / MARKER).write_text(json.dumps(marker, indent=1))
            os.rename(unfinished, path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return path


def _write_episode(folder: Path, config: MockConfig, episode: int) -> None:
    rng = np.random.default_rng([config.seed, episode + 1])
    length = int(rng.integers(config.min_length, config.max_length + 1))
    place = rng.uniform(0.15, 0.85, size=2)
    goal = _goal(config, place)
    qpos = rng.normal(scale=0.1, size=config.action_dim)
    scene = _Scene(rng, place, config)
    attributes = {"fps": 50.0, "language_instruction": "move to the disc"}
    size = dict.fromkeys(config.cameras, config.image_size)
    with EpisodeWriter(folder, cameras=size, sim=True, compress=config.compress, attributes=attributes) as writer:
        for _ in range(length):
            action = _action(qpos, goal)
            velocity = _FOLLOW * (action - qpos)
            images = {camera: scene.render(number) for number, camera in enumerate(config.cameras)}
            writer.add(qpos=qpos, qvel=velocity, images=images, action=action)
            qpos = qpos + velocity


def _goal(config: MockConfig, place: np.ndarray) -> np.ndarray:
    """Joint angles for a disc at (x, y): a fixed smooth map of the seed, about 1 rad wide."""
    mixing = np.random.default_rng([config.seed, 0]).normal(size=(config.action_dim, 3))
    x, y = 2 * place - 1
    return mixing @ np.array([x, y, x * y])


def _action(qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """A step of the way for every joint; grippers (the last dimension of each half) close on arrival."""
    action = qpos + _APPROACH * (goal - qpos)
    half = len(qpos) // 2
    grippers = [half - 1, 2 * half - 1]
    joints = np.setdiff1d(np.arange(len(qpos)), grippers)
    left = np.abs(goal - qpos)[joints].mean() if len(joints) else 0.0
    action[grippers] = left / (left + _GRIPPER_OPENS_AT)
    return action


class _Scene:
    """A noisy background with a disc at ``place`` (x, y as fractions). Odd cameras see it mirrored."""

    def __init__(self, rng: np.random.Generator, place: np.ndarray, config: MockConfig) -> None:
        self.rng = rng
        height, width = config.image_size
        rows, columns = np.mgrid[:height, :width]
        radius = 0.12 * min(height, width)
        inside = (columns - place[0] * width) ** 2 + (rows - place[1] * height) ** 2 <= radius**2
        background = rng.uniform(60, 120, size=3)
        self.picture = np.where(inside[..., None], np.array([220.0, 40.0, 40.0]), background)

    def render(self, camera: int) -> np.ndarray:
        """A frame, uint8 [H, W, 3]."""
        picture = self.picture[:, ::-1] if camera % 2 else self.picture
        return np.clip(picture + self.rng.normal(scale=4, size=picture.shape), 0, 255).astype(np.uint8)


@contextlib.contextmanager
def _only_one_writer(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".mock.lock").open("w")
    except OSError as error:
        raise UserError(
            f"Cannot write mock data to {folder}: {error}. Expected a folder that this user may write to."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_changed(path: Path) -> None:
    try:
        expected = json.loads((path / MARKER).read_text())["sha256"]
    except (OSError, ValueError, KeyError):
        expected = None
    if expected != _content_hash(path):
        raise UserError(f"The mock data in {path} is not what was written there. Delete that folder to make it anew.")


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for episode in list_episodes(folder):
        digest.update(episode.name.encode())
        with episode.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
