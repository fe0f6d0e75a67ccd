"""A writer of whole ALOHA datasets that an interruption does not spoil, over ``writer.EpisodeWriter``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vla_ft.data.formats.aloha_hdf5 import describe
from vla_ft.data.formats.aloha_layout import EPISODE_FILE, UNFINISHED, EpisodeHeader
from vla_ft.data.formats.base import DatasetWriter
from vla_ft.data.formats.writer import EpisodeWriter
from vla_ft.data.formats.writing import (
    Step,
    check_image_format,
    checked_steps,
    closing_on_error,
    explained,
    only_writer,
    settle,
    sync_folder,
)
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError

_SETTINGS = ".writer.json"


class AlohaWriter(DatasetWriter):
    """Write a folder of ``episode_<number>.hdf5`` files: raw pixels, or a JPEG a frame.

    ``proprio`` becomes ``/observations/qpos``. ``/observations/qvel``, which the published code asks for and nobody
    uses, is the change of it times the rate. Files are float64, as published, of float32 values. A marker keeps this
    project's reader out until ``finish``; opened on a finished set of the same settings, the writer goes on behind it.

    Raises UserError when the folder cannot be written, another process writes it, or it holds anything else.
    """

    IMAGES = ("raw", "jpeg")
    HOLDS_OFFSET = True

    def __init__(
        self,
        folder: Path | str,
        description: DatasetDescription,
        *,
        images: str = "raw",
        jpeg_quality: int = 95,
        action_offset: int = 0,
    ) -> None:
        """``action_offset``: see ``EpisodeReader``; -1 is attribute ``sim`` false."""
        check_image_format(images, self.IMAGES)
        if action_offset not in (0, -1):
            raise ValueError(f"ALOHA's files can say 0 and -1, not an action offset of {action_offset}")
        _refuse_impossible(description)
        self.path = Path(folder)
        self.description, self.images, self.jpeg_quality = description, images, jpeg_quality
        self.sim = action_offset == 0
        self.kept = describe(self._header(), description.cameras, self.path.stem, description.fps)
        self._lock: int | None = None
        with explained(self.path), closing_on_error(self):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = only_writer(self.path)
            numbers = sorted(int(m[1]) for p in self.path.iterdir() if (m := EPISODE_FILE.fullmatch(p.name)))
            self._settle(begun=bool(numbers))
            if numbers != list(range(len(numbers))):
                raise UserError(f"{self.path} lacks an episode below number {numbers[-1]}. Remove that folder.")
        self.done = len(numbers)

    def add(self, steps: Iterable[Step], instruction: str) -> None:
        """See ``DatasetWriter.add``."""
        with explained(self.path):
            self._marker.touch()
        writer = EpisodeWriter(
            self.path,
            cameras=self.description.cameras,
            sim=self.sim,
            compress=self.images == "jpeg",
            jpeg_quality=self.jpeg_quality,
            attributes={"fps": self.description.fps, "language_instruction": instruction},
        )
        with writer:
            before: np.ndarray | None = None
            for step in checked_steps(steps, self.description):
                qpos = step["proprio"].astype(np.float64)
                writer.add(
                    qpos=qpos,
                    qvel=(qpos - (qpos if before is None else before)) * self.description.fps,
                    images={camera: step[IMAGE_PREFIX + camera] for camera in self.description.cameras},
                    action=step["action"],
                )
                before = qpos
        self.done += 1

    def finish(self) -> Path:
        """See ``DatasetWriter.finish``."""
        if not self.done:
            raise UserError(f"No episode was written to {self.path}, and a dataset cannot be empty.")
        with explained(self.path):
            self._marker.unlink(missing_ok=True)
            sync_folder(self.path)
        self.close()
        return self.path

    def close(self) -> None:
        """See ``DatasetWriter.close``."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _marker(self) -> Path:
        return self.path / UNFINISHED

    def _settle(self, begun: bool) -> None:
        """Keep the settings in the folder, or compare them with those of an earlier writer. Raises UserError."""
        settings = self.path / _SETTINGS
        if begun and not settings.is_file():
            raise UserError(
                f"{self.path} holds episodes that were recorded into it. Write to a new folder, so that sets of "
                "different origin stay apart."
            )
        if not settings.is_file():
            self._marker.touch()  # before anything that a reader could take for a set
        about = {"description": self.description.to_json(), "sim": self.sim}
        settle(settings, {**about, "images": self.images, "jpeg_quality": self.jpeg_quality})

    def _header(self) -> EpisodeHeader:
        """What every file of the set is going to say."""
        return EpisodeHeader(
            path=self.path,
            length=1,
            action_dim=self.description.action_dim,
            proprio_dim=self.description.proprio_dim,
            cameras=dict(self.description.cameras),
            sim=self.sim,
            instruction="",
            fps=self.description.fps,
        )


def _refuse_impossible(description: DatasetDescription) -> None:
    for part, width in (("action", description.action_dim), ("proprio", description.proprio_dim)):
        if not width:
            raise UserError(
                f"{description.name} has no {part}, and ALOHA's files cannot be without. Name its columns: "
                f"{part}=[...]."
            )
    for camera in description.cameras:
        if "/" in camera or camera in ("", "."):
            raise UserError(f"Camera '{camera}' cannot be written: it names a folder inside HDF5. Rename it.")
