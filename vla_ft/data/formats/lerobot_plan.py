"""What a LeRobot writer writes where: its parameters, the staged episodes, and which episodes share a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_ft.errors import UserError

STAGING = ".lerobot-unfinished"
"""Folder of committed episodes until ``finish``."""
FINISHED = ".lerobot-finished"
"""What that folder is called while it is removed."""
DATA_PATHS = {
    "v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "v2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
}
VIDEO_PATHS = {
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WriterPlan:
    """The parameters of a dataset to write: they decide every byte, so an interrupted writer must keep them."""

    folder: Path
    version: str
    fps: float
    robot_type: str | None
    features: dict[str, dict[str, Any]]
    cameras: tuple[str, ...]
    video: bool
    chunks_size: int
    data_megabytes: float
    video_megabytes: float

    @property
    def staging(self) -> Path:
        """Where episodes wait."""
        return self.folder / STAGING

    def parameters(self) -> dict[str, Any]:
        """All but the folder, in JSON types."""
        return {key: value for key, value in self.__dict__.items() if key != "folder"}


@dataclass(frozen=True)
class FileGroup:
    """Episodes ``[first, last)`` in file ``file`` of chunk ``chunk``."""

    chunk: int
    file: int
    first: int
    last: int


def is_finished(plan: WriterPlan, info: Path) -> bool:
    """Whether the ``info.json`` of a finished dataset is the one that this plan leads to."""
    try:
        found = json.loads(info.read_text())
    except ValueError:
        return False
    planned = {
        "codebase_version": plan.version,
        "fps": plan.fps,
        "robot_type": plan.robot_type,
        "chunks_size": plan.chunks_size,
        "features": json.loads(json.dumps(plan.features)),
    }
    return all(found.get(key) == value for key, value in planned.items())


def episode_folder(plan: WriterPlan, episode: int) -> Path:
    """Where a committed episode waits."""
    return plan.staging / f"episode_{episode:06d}"


def read_records(plan: WriterPlan) -> Iterator[dict[str, Any]]:
    """What is known of each committed episode, in order."""
    episode = 0
    while (path := episode_folder(plan, episode) / "record.json").is_file():
        try:
            yield json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}. Remove {plan.staging.parent} to begin again.") from error
        episode += 1


def group_files(sizes: Sequence[int], megabytes: float, chunks_size: int) -> list[FileGroup]:
    """Which episodes share a file: a new one begins before an episode that would take it to ``megabytes``."""
    groups: list[FileGroup] = []
    first, filled = 0, 0
    for episode, size in enumerate(sizes):
        if filled and filled + size >= megabytes * _MEGABYTE:
            groups.append(FileGroup(*divmod(len(groups), chunks_size), first, episode))
            first, filled = episode, 0
        filled += size
    groups.append(FileGroup(*divmod(len(groups), chunks_size), first, len(sizes)))
    return groups
