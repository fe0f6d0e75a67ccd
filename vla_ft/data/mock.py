"""A small real dataset with something to learn, written to disk in any format and read like any other.

A coloured disc lies somewhere in the picture. Its place decides the pose that the joints approach, so a policy must see
it to predict well; joint positions decide how much of the way is left. The action is a function of picture and joints.
All formats hold the same episodes.
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
from typing import Any, ClassVar, Literal

import numpy as np

from vla_ft.data.formats.registry import find_writer, open_writer
from vla_ft.data.formats.writing import Step
from vla_ft.data.noise import INSTRUCTIONS, noise_steps
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError

MARKER = "mock.json"
"""File in the dataset's folder: the parameters, and the hash of what was written."""
_GENERATOR = 2  # raise it when the same parameters begin to give other data
_APPROACH = 0.15
_FOLLOW = 0.8
_GRIPPER_OPENS_AT = 0.3
_FPS = 50.0
_INSTRUCTION = "move to the disc"


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
    proprio_dim: int | None = None
    """Of ``noise``; null, and always for ``disc``, is ``action_dim``."""
    content: Literal["disc", "noise"] = "disc"
    """``disc`` can be learned; ``noise`` is random numbers, which show that a pipeline runs."""
    seed: int = 0
    format: str = "aloha"
    """What to write: a name in ``formats.registry.WRITERS``."""
    images: str | None = None
    """How pictures are stored (``raw``, ``png``, ``jpeg``, ``image``, ``video``); null takes an exact way of the
    format."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or not 1 <= self.min_length <= self.max_length or not self.cameras or self.action_dim < 2:
            raise UserError(
                f"Cannot generate {self}. Expected at least 1 episode, 1 camera and 2 action dimensions, and "
                "1 <= min_length <= max_length."
            )
        if self.proprio_dim is not None and (self.content == "disc" or self.proprio_dim < 1):
            raise UserError(
                f"data.mock.proprio_dim={self.proprio_dim} is for content=noise, and 1 or more: the disc's actions "
                "follow joints of their own number. Set data.mock.content=noise, or remove it."
            )
        if self.seed < 0:
            raise UserError(f"The mock's seed is {self.seed}, expected 0 or more.")
        if min(self.image_size) < 8:
            raise UserError(f"Mock images of {self.image_size} pixels show nothing. Expected at least (8, 8).")
        find_writer(self.format)

    def key(self) -> str:
        """A short name of these parameters."""
        text = json.dumps({"generator": _GENERATOR, **dataclasses.asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_mock(folder: Path | str, config: MockConfig) -> Path:
    """Return the folder of the dataset of ``config``, a sub-folder of ``folder`` named by its parameters, writing
    it when it is not there yet.

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
            _write_episodes(unfinished, config)
            marker = {"parameters": dataclasses.asdict(config), "sha256": _content_hash(unfinished)}
            (unfinished / MARKER).write_text(json.dumps(marker, indent=1))
            os.rename(unfinished, path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return path


def describe(config: MockConfig) -> DatasetDescription:
    """What the mock's numbers mean: joint targets in rad, a gripper at the end of each half; noise means nothing."""
    if config.content == "noise":
        return _describe_noise(config)
    half = config.action_dim // 2
    names = tuple(
        f"joint_{i}" if i not in (half - 1, 2 * half - 1) else f"gripper_{i}" for i in range(config.action_dim)
    )
    units = tuple("fraction" if name.startswith("gripper") else "rad" for name in names)
    return DatasetDescription(
        name="mock",
        # In the order in which every format's reader names them.
        cameras=dict.fromkeys(sorted(config.cameras), config.image_size),
        action_names=names,
        action_units=units,
        proprio_names=names,
        proprio_units=units,
        action_kind="joint",
        action_mode="absolute",
        gripper="0 closed, 1 open",
        fps=_FPS,
    )


def _describe_noise(config: MockConfig) -> DatasetDescription:
    actions = tuple(f"action_{i}" for i in range(config.action_dim))
    proprio = tuple(f"proprio_{i}" for i in range(config.proprio_dim or config.action_dim))
    return DatasetDescription(
        name="noise",
        cameras=dict.fromkeys(sorted(config.cameras), config.image_size),
        action_names=actions,
        action_units=("",) * len(actions),
        proprio_names=proprio,
        proprio_units=("",) * len(proprio),
        action_kind="unknown",
        action_mode="unknown",
        gripper="unknown",
        fps=_FPS,
    )


def _write_episodes(folder: Path, config: MockConfig) -> None:
    kind, _ = find_writer(config.format)
    exact = next(images for images in kind.IMAGES if images not in kind.LOSSY)
    writer = open_writer(folder, describe(config), config.format, config.images or exact)
    try:
        for episode in range(config.episodes):
            instruction = INSTRUCTIONS[episode % len(INSTRUCTIONS)] if config.content == "noise" else _INSTRUCTION
            writer.add(episode_steps(config, episode), instruction)
        writer.finish()
    finally:
        writer.close()


def episode_steps(config: MockConfig, episode: int) -> Iterator[Step]:
    """The steps of an episode as ``DatasetWriter.add`` takes them."""
    rng = np.random.default_rng([config.seed, episode + 1])
    length = int(rng.integers(config.min_length, config.max_length + 1))
    if config.content == "noise":
        yield from noise_steps(
            rng,
            length,
            cameras=config.cameras,
            image_size=config.image_size,
            action_dim=config.action_dim,
            proprio_dim=config.proprio_dim or config.action_dim,
        )
        return
    place = rng.uniform(0.15, 0.85, size=2)
    goal = _goal(config, place)
    qpos = rng.normal(scale=0.1, size=config.action_dim)
    scene = _Scene(rng, place, config)
    for _ in range(length):
        action = _action(qpos, goal)
        images = {IMAGE_PREFIX + camera: scene.render(number) for number, camera in enumerate(config.cameras)}
        yield {"action": action, "proprio": qpos, **images}
        qpos = qpos + _FOLLOW * (action - qpos)


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
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER]
    for path in sorted(files):
        if path.name.startswith("."):
            continue  # indices that readers make
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
