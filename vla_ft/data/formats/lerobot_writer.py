"""A crash-safe writer of LeRobot datasets, versions 3.0 and 2.1, with images in parquet or in videos.

Each episode is committed in a hidden folder, by a rename. ``finish`` joins them to the files of the format and writes
``meta/info.json`` last, so no reader opens a dataset before it is whole; interrupted anywhere, it goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa

from vla_ft.data.formats.base import DatasetWriter
from vla_ft.data.formats.lerobot_finish import publish_v2, publish_v3
from vla_ft.data.formats.lerobot_plan import FINISHED, WriterPlan, episode_folder, is_finished, read_records
from vla_ft.data.formats.lerobot_statistics import (
    column_statistics,
    image_statistics,
    pixel_counts,
    plain,
    sampled_frames,
)
from vla_ft.data.formats.lerobot_tables import StepsFile, camera_key, feature_table, schema_of, write_meta
from vla_ft.data.formats.video_encoding import VideoEncoder, choose_encoder, video_info
from vla_ft.data.formats.writing import closing_on_error, explained, only_writer, sync
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError, unknown

_LIBRARIES = (pa.ArrowException, av.FFmpegError)
"""What PyArrow and PyAV raise where the disk fails them."""


class LeRobotWriter(DatasetWriter):
    """Writes ``observation.state``, ``action``, ``observation.images.<camera>`` and the tasks of a described dataset.

    ``encoder`` names what videos are written with (AV1 where PyAV has it, as LeRobot does). Memory holds a row group of
    an episode. One writer at a time may work in a folder.
    """

    IMAGES = ("video", "image")

    def __init__(
        self,
        folder: Path | str,
        description: DatasetDescription,
        *,
        version: Literal["v3.0", "v2.1"] = "v3.0",
        images: Literal["image", "video"] = "video",
        codec: str = "auto",
        robot_type: str | None = None,
        chunks_size: int = 1000,
        data_megabytes: float = 100.0,
        video_megabytes: float = 200.0,
    ) -> None:
        """Begin, or go on with what an interrupted writer left. Raises UserError if the folder holds anything else."""
        if version not in ("v3.0", "v2.1"):
            raise unknown("LeRobot version to write", version, ("v3.0", "v2.1"))
        if images not in self.IMAGES:
            raise unknown("kind of images", images, self.IMAGES)
        self.folder, self.description = Path(folder), description
        self.kept = _kept(description, self.folder.name)
        self.encoder = choose_encoder(codec) if images == "video" and description.cameras else None
        facts = {
            c: video_info(s, description.fps, self.encoder) for c, s in description.cameras.items() if self.encoder
        }
        self.plan = WriterPlan(
            folder=self.folder,
            version=version,
            fps=description.fps,
            robot_type=robot_type,
            features=feature_table(description, facts if self.encoder else None),
            cameras=tuple(description.cameras),
            video=self.encoder is not None,
            chunks_size=chunks_size,
            data_megabytes=data_megabytes,
            video_megabytes=video_megabytes,
        )
        _refuse_impossible(description, self.encoder)
        self._schema = schema_of(self.plan.features, "List" if version == "v3.0" else "Sequence")
        self._finished = False
        self._lock: int | None = None
        self.done, self._steps = 0, 0
        self._tasks: list[str] = []
        with explained(self.folder, _LIBRARIES), closing_on_error(self):
            self._begin()

    def add(self, steps: Iterable[dict[str, np.ndarray]], instruction: str) -> None:
        """See ``DatasetWriter.add``. Raises ValueError for steps that do not fit the description, or none at all."""
        if self._finished or (self.plan.staging / "finishing").exists():
            raise ValueError("this dataset is being finished: nothing can be added")
        with explained(self.folder, _LIBRARIES):
            adding = self.plan.staging / "adding"
            shutil.rmtree(adding, ignore_errors=True)
            adding.mkdir()
            try:
                record = self._write_episode(adding, steps, instruction)
                write_meta(adding / "record.json", record)
                for path in adding.iterdir():
                    sync(path)
                os.rename(adding, episode_folder(self.plan, self.done))
                sync(self.plan.staging)
            except BaseException:
                shutil.rmtree(adding, ignore_errors=True)
                raise
        self.done += 1
        self._steps += record["length"]
        self._tasks = list(dict.fromkeys((*self._tasks, instruction)))

    def finish(self) -> Path:
        """See ``DatasetWriter.finish``. Raises UserError when there are no episodes or the disk is full."""
        if self._finished:
            return self.folder
        if not self.done:
            raise UserError(f"Nothing was written to {self.folder}. Expected at least one episode.")
        with explained(self.folder, _LIBRARIES):
            if not (self.folder / "meta" / "info.json").exists():
                (self.plan.staging / "finishing").touch()
                publish = publish_v3 if self.plan.version == "v3.0" else publish_v2
                publish(self.plan, self._tasks, self._schema)
            os.rename(self.plan.staging, self.folder / FINISHED)
            shutil.rmtree(self.folder / FINISHED)
        self._finished = True
        self.close()
        return self.folder

    def close(self) -> None:
        """See ``DatasetWriter.close``."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()  # a writer that was dropped locks nobody out

    def _write_episode(self, folder: Path, steps: Iterable[dict[str, np.ndarray]], instruction: str) -> dict[str, Any]:
        task = self._tasks.index(instruction) if instruction in self._tasks else len(self._tasks)
        table = StepsFile(folder / "data.parquet", self._schema)
        numbers: list[dict[str, np.ndarray]] = []
        pixels: dict[str, list[np.ndarray]] = {camera: [] for camera in self.plan.cameras}
        with contextlib.ExitStack() as stack:
            stack.callback(table.abandon)
            videos = {
                camera: stack.enter_context(
                    VideoEncoder(folder / f"{place}.mp4", self.plan.fps, self.description.cameras[camera], self.encoder)
                )
                for place, camera in enumerate(self.plan.cameras)
                if self.encoder
            }
            for number, step in enumerate(steps):
                self._refuse_misfit(step, number)
                row = self._row(step, number, task)
                numbers.append(
                    {name: np.atleast_1d(v) for name, v in row.items() if not name.startswith(camera_key(""))}
                )
                for camera in self.plan.cameras:
                    pixels[camera].append(pixel_counts(step[IMAGE_PREFIX + camera]).astype(np.int32))
                    if camera in videos:
                        videos[camera].add(step[IMAGE_PREFIX + camera])
                table.add(row, number)
            if not numbers:
                raise ValueError("an episode without steps cannot be written")
            table.close()
        return {
            "length": len(numbers),
            "task": instruction,
            "data_bytes": (folder / "data.parquet").stat().st_size,
            "video_bytes": [(folder / f"{place}.mp4").stat().st_size for place in range(len(videos))],
            "stats": self._statistics(numbers, pixels),
        }

    def _row(self, step: dict[str, np.ndarray], number: int, task: int) -> dict[str, Any]:
        return {
            "observation.state": np.asarray(step["proprio"], np.float32),
            "action": np.asarray(step["action"], np.float32),
            **{camera_key(camera): step[IMAGE_PREFIX + camera] for camera in self.plan.cameras},
            "timestamp": np.float32(number / self.plan.fps),
            "frame_index": number,
            "episode_index": self.done,
            "index": self._steps + number,
            "task_index": task,
        }

    def _statistics(
        self, numbers: list[dict[str, np.ndarray]], pixels: dict[str, list[np.ndarray]]
    ) -> dict[str, dict[str, Any]]:
        quantiles = self.plan.version == "v3.0"
        stats = {
            name: plain(column_statistics(np.stack([row[name] for row in numbers]), quantiles)) for name in numbers[0]
        }
        chosen = sampled_frames(len(numbers))
        for camera, counts in pixels.items():
            summed = np.stack([counts[i] for i in chosen]).sum(axis=0, dtype=np.int64)
            stats[camera_key(camera)] = plain(image_statistics(summed, len(chosen), quantiles))
        return stats

    def _refuse_misfit(self, step: dict[str, np.ndarray], number: int) -> None:
        for key, width in (("action", self.description.action_dim), ("proprio", self.description.proprio_dim)):
            values = np.asarray(step[key])
            if values.shape != (width,) or not np.isfinite(values).all():
                raise ValueError(f"step {number}: {key} must be [{width}] and finite, got {values}")
        for camera, size in self.description.cameras.items():
            image = step[IMAGE_PREFIX + camera]
            if image.dtype != np.uint8 or image.shape != (*size, 3):
                raise ValueError(f"step {number}: {camera} is {image.dtype} {image.shape}, expected uint8 {(*size, 3)}")

    def _begin(self) -> None:
        staging, info = self.plan.staging, self.folder / "meta" / "info.json"
        if (self.folder / FINISHED).exists():  # interrupted at the very end
            self.done, self._finished = int(json.loads(info.read_text())["total_episodes"]), True
            shutil.rmtree(self.folder / FINISHED)
            return
        if info.is_file() and not staging.exists() and is_finished(self.plan, info):
            self.done, self._finished = int(json.loads(info.read_text())["total_episodes"]), True
            return
        if self.folder.exists() and not staging.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} already holds something. Expected a new or empty folder to write to.")
        staging.mkdir(parents=True, exist_ok=True)
        self._lock = only_writer(staging)
        book, versions = staging / "writer.json", {"pyarrow": pa.__version__, "av": av.__version__}
        mine = json.loads(json.dumps(self.plan.parameters() | {"encoder": self.encoder, "libraries": versions}))
        if not book.exists():
            write_meta(book, mine)
        elif (theirs := json.loads(book.read_text())) != mine:
            other = [key for key in mine if theirs.get(key) != mine[key]]
            raise UserError(
                f"{self.folder} holds a dataset that was begun with other settings ({', '.join(other)}). Go on with "
                "those, or remove the folder to begin again."
            )
        for record in read_records(self.plan):
            self.done += 1
            self._steps += record["length"]
            self._tasks = list(dict.fromkeys((*self._tasks, record["task"])))


def _kept(description: DatasetDescription, name: str) -> DatasetDescription:
    """What LeRobot's files say of a dataset: names that are distinct, cameras and the rate."""
    parts: dict[str, Any] = {}
    for part in ("action", "proprio"):
        names = getattr(description, f"{part}_names")
        distinct = len(set(names)) == len(names)
        parts[f"{part}_names"] = names if distinct else tuple(f"{part}_{i}" for i in range(len(names)))
        parts[f"{part}_units"] = ("unknown",) * len(names)
    return dataclasses.replace(
        description,
        name=name,
        **parts,
        action_kind="unknown",
        action_mode="unknown",
        gripper="unknown",
        gripper_dims=(),
    )


def _refuse_impossible(description: DatasetDescription, encoder: str | None) -> None:
    for part, width in (("action", description.action_dim), ("proprio", description.proprio_dim)):
        if not width:
            raise UserError(
                f"{description.name} has no {part}, and LeRobot's files cannot be without. Name its columns: "
                f"{part}=[...]."
            )
    for camera, (height, width) in description.cameras.items():
        if "/" in camera:
            raise UserError(f"Camera '{camera}' cannot be written: LeRobot's names have no '/'. Rename it.")
        if encoder and (height % 2 or width % 2):
            raise UserError(
                f"Camera '{camera}' has {height} x {width} pixels, and video needs even numbers: write images instead."
            )
