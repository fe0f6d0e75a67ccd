"""The same tiny demonstrations in every format that we write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.lerobot_writer import LeRobotWriter
from vla_ft.data.formats.npy_writer import NpyWriter
from vla_ft.data.formats.npz_writer import NpzWriter
from vla_ft.data.formats.rlds_writer import RldsWriter
from vla_ft.data.formats.writer import EpisodeWriter
from vla_ft.data.sample import DatasetDescription

FORMATS = ("aloha_hdf5", "lerobot", "npy", "npz", "rlds")
LENGTHS = (14, 11, 16, 12)
DESCRIPTION = DatasetDescription(
    name="tiny_set",
    cameras={"top": (32, 40), "wrist": (32, 40)},
    action_names=("x", "y", "gripper"),
    action_units=("rad", "rad", "fraction"),
    proprio_names=("a", "b"),
    proprio_units=("rad", "rad"),
    action_kind="joint",
    action_mode="absolute",
    gripper="0 closed, 1 open",
    fps=5.0,
    gripper_dims=(2,),
)


def steps_of(episode: int, length: int) -> Iterator[dict[str, np.ndarray]]:
    """Smooth numbers, a gripper that closes half way, and pictures in which a square moves."""
    phase = np.random.default_rng(episode).uniform(0, 3)
    for step in range(length):
        angle = phase + 0.2 * step
        row: dict[str, Any] = {
            "action": np.array([np.sin(angle), np.cos(angle), float(step < length // 2)], np.float32),
            "proprio": np.array([np.sin(angle - 0.2), np.cos(angle - 0.2)], np.float32),
        }
        for place, (camera, size) in enumerate(DESCRIPTION.cameras.items()):
            picture = np.full((*size, 3), 90 + 40 * place, np.uint8)
            left = int((0.5 + 0.4 * np.sin(angle)) * (size[1] - 8))
            picture[8:16, left : left + 8] = (220, 60, 40)
            row[f"image_{camera}"] = picture
        yield row


def write_set(folder: Path, format: str, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """A finished set of one of ``FORMATS``; the path that ``data.path`` takes."""
    if format == "aloha_hdf5":
        attributes = {"fps": DESCRIPTION.fps, "language_instruction": "follow the square"}
        for episode, length in enumerate(lengths):
            with EpisodeWriter(folder, cameras=DESCRIPTION.cameras, sim=True, attributes=attributes) as file:
                for row in steps_of(episode, length):
                    images = {c: row[f"image_{c}"] for c in DESCRIPTION.cameras}
                    file.add(qpos=row["proprio"], qvel=row["proprio"] * 0, images=images, action=row["action"])
        return folder
    writer: Any
    if format == "lerobot":
        writer = LeRobotWriter(folder, DESCRIPTION, version="v2.1", images="image")
    else:
        writer = {"npy": NpyWriter, "npz": NpzWriter, "rlds": RldsWriter}[format](folder, DESCRIPTION)
    for episode, length in enumerate(lengths):
        writer.add(steps_of(episode, length), "follow the square")
    return writer.finish()


def break_episode(path: Path, format: str, episode: int) -> None:
    """Damage the numbers of one episode as a bad copy would: a file cut in half, or a byte turned in a record."""
    if format == "rlds":
        from vla_ft.data.formats.tfrecord import scan

        shard = next(path.glob("*.tfrecord*"))
        record = [record for record, _ in scan(shard)][episode]
        content = bytearray(shard.read_bytes())
        content[record.offset + record.size // 2] ^= 0xFF
        shard.write_bytes(bytes(content))
        return
    if format == "npy":
        content = bytearray((path / "actions.npy").read_bytes())
        lengths = np.load(path / "rollout_length.npy")
        row = (len(content) - 128) // int(lengths.sum())
        content[128 + row * (int(lengths[:episode].sum()) + 1)] ^= 0xFF
        (path / "actions.npy").write_bytes(bytes(content))
        return
    names = {"aloha_hdf5": "episode_*.hdf5", "npz": "episode_*.npz", "lerobot": "data/*/*.parquet"}
    file = sorted(path.glob(names[format]))[episode]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
