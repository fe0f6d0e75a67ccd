"""Small LeRobot datasets, written by the real writer, and the arrays that went into them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.lerobot_writer import LeRobotWriter
from vla_ft.data.sample import DatasetDescription

SIZE = (32, 48)
LENGTHS = (7, 4, 9)
KINDS = (("v3.0", "image"), ("v3.0", "video"), ("v2.1", "image"), ("v2.1", "video"))
KEYS = ("action", "proprio", "image_front", "image_wrist")


def describe(size: tuple[int, int] = SIZE, cameras: tuple[str, ...] = ("front", "wrist")) -> DatasetDescription:
    """Six actions, four proprioceptive numbers, 10 steps a second."""
    return DatasetDescription(
        name="small",
        cameras=dict.fromkeys(cameras, size),
        action_names=tuple(f"joint_{i}" for i in range(6)),
        action_units=("unknown",) * 6,
        proprio_names=tuple("abcd"),
        proprio_units=("unknown",) * 4,
        action_kind="unknown",
        action_mode="unknown",
        gripper="unknown",
        fps=10.0,
    )


def steps_of(episode: int, length: int, description: DatasetDescription) -> Iterator[dict[str, np.ndarray]]:
    """Smooth moving pictures that video coding keeps, numbers drawn from the episode's seed."""
    rng = np.random.default_rng(episode)
    for step in range(length):
        row = {
            "action": rng.normal(size=description.action_dim).astype(np.float32),
            "proprio": rng.normal(size=description.proprio_dim).astype(np.float32),
        }
        for place, (camera, (height, width)) in enumerate(description.cameras.items()):
            down, across = np.mgrid[:height, :width]
            channels = [across * 4 + step * 6, down * 5 + place * 40, (across + down) * 2 + episode * 30 + step * 3]
            row[f"image_{camera}"] = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
        yield row


def arrays_of(episode: int, length: int, description: DatasetDescription) -> dict[str, np.ndarray]:
    """The same, stacked, time first."""
    rows = list(steps_of(episode, length, description))
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def instruction_of(episode: int) -> str:
    """Two tasks, in turn."""
    return ("pick up the cube", "öffne die Schublade")[episode % 2]


def open_writer(folder: Path, version: str, images: str, **options: Any) -> LeRobotWriter:
    """A writer of ``describe()``; small file limits, so that files roll over."""
    limits = {"data_megabytes": 0.012, "video_megabytes": 0.002, "chunks_size": 2}
    return LeRobotWriter(folder, describe(), version=version, images=images, **{**limits, **options})  # type: ignore[arg-type]


def write_set(
    folder: Path, version: str = "v3.0", images: str = "image", lengths: tuple[int, ...] = LENGTHS, **options: Any
) -> Path:
    """A finished dataset."""
    writer = open_writer(folder, version, images, **options)
    for episode, length in enumerate(lengths):
        writer.add(steps_of(episode, length, describe()), instruction_of(episode))
    return writer.finish()


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
