"""A crash-safe writer of npz episodes (layout: ``npz_layout``)."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from vla_ft.data.formats.base import DatasetWriter
from vla_ft.data.formats.npz_layout import DATA, DATASET, EPISODE_FILE, LAYOUT, OFFSETS, NpzError, episode_file, members
from vla_ft.data.formats.writing import (
    IMAGE_FORMATS,
    Step,
    check_image_format,
    checked_steps,
    closing_on_error,
    encode_image,
    explained,
    only_writer,
    settle,
    sync_folder,
    write_json,
)
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError

_SETTINGS = ".writer.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip has times; the same episode is to give the same bytes


class NpzWriter(DatasetWriter):
    """Write a folder of npz episodes, uncompressed so that single steps can be read.

    ``images``: ``png`` (exact), ``jpeg`` of ``jpeg_quality``, or ``raw`` pixels. Images go through a temporary
    file on the same disk, so memory does not grow with an episode either. Opened on a finished set of the same
    settings, it goes on behind its last episode.

    Raises UserError when the folder cannot be written, another process writes it, or it was begun with other settings.
    """

    IMAGES = (*IMAGE_FORMATS, "raw")

    def __init__(
        self,
        folder: Path | str,
        description: DatasetDescription,
        *,
        images: str = "png",
        jpeg_quality: int = 95,
    ) -> None:
        check_image_format(images, self.IMAGES)
        self.path = Path(folder)
        self.description = self.kept = description
        self.images, self.jpeg_quality = images, jpeg_quality
        settings = {"description": description.to_json(), "images": images, "jpeg_quality": jpeg_quality}
        self._lock: int | None = None
        with explained(self.path), closing_on_error(self):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = only_writer(self.path)
            settle(self.path / _SETTINGS, settings)
            for left in self.path.glob(".episode_*.unfinished"):
                left.unlink()
            numbers = sorted(int(m[1]) for p in self.path.iterdir() if (m := EPISODE_FILE.fullmatch(p.name)))
            if numbers != list(range(len(numbers))):
                raise UserError(f"{self.path} lacks an episode below {episode_file(numbers[-1])}. Remove that folder.")
            self._lengths = [self._length(self.path / episode_file(n)) for n in numbers]
        self.done = len(numbers)

    def add(self, steps: Iterable[Step], instruction: str) -> None:
        """See ``DatasetWriter.add``."""
        path = self.path / episode_file(self.done)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with explained(self.path), unfinished.open("wb") as file:
                length = self._write(file, steps, instruction)
                file.flush()
                os.fsync(file.fileno())
            with explained(self.path):
                os.replace(unfinished, path)
                sync_folder(self.path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._lengths.append(length)
        self.done += 1

    def finish(self) -> Path:
        """See ``DatasetWriter.finish``."""
        if not self.done:
            raise UserError(f"No episode was written to {self.path}, and a dataset cannot be empty.")
        with explained(self.path):
            content = {"layout": LAYOUT, "description": self.description.to_json(), "lengths": self._lengths}
            write_json(self.path / DATASET, content)
            sync_folder(self.path)
        self.close()
        return self.path

    def close(self) -> None:
        """See ``DatasetWriter.close``."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def _length(path: Path) -> int:
        try:
            return members(path)["action"].shape[0]
        except (NpzError, KeyError, IndexError) as error:
            raise UserError(f"{path} is damaged: {error}. Remove it and all later episodes to go on.") from error

    def _write(self, file: IO[bytes], steps: Iterable[Step], instruction: str) -> int:
        cameras = [IMAGE_PREFIX + camera for camera in self.description.cameras]
        columns: dict[str, list[np.ndarray]] = {"action": [], "proprio": []}
        offsets: dict[str, list[int]] = {name: [0] for name in cameras}
        spools: dict[str, IO[bytes]] = {}
        try:
            for name in cameras:
                spools[name] = tempfile.TemporaryFile(dir=self.path)  # noqa: SIM115
            for step in checked_steps(steps, self.description):
                for name, rows in columns.items():
                    rows.append(step[name])
                for name, spool in spools.items():
                    spool.write(self._image(step[name]))
                    offsets[name].append(spool.tell())
            if not columns["action"]:
                raise ValueError("an episode without steps cannot be written")
            self._pack(file, columns, offsets, spools, instruction)
        finally:
            for spool in spools.values():
                spool.close()
        return len(columns["action"])

    def _image(self, image: np.ndarray) -> bytes:
        if self.images == "raw":
            return image.tobytes()
        return encode_image(image, self.images, self.jpeg_quality)

    def _pack(
        self,
        file: IO[bytes],
        columns: dict[str, list[np.ndarray]],
        offsets: dict[str, list[int]],
        spools: dict[str, IO[bytes]],
        instruction: str,
    ) -> None:
        length = len(columns["action"])
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, rows in columns.items():
                _add(archive, name, np.stack(rows))
            _add(archive, "instruction", np.frombuffer(instruction.encode(), dtype=np.uint8))
            for name, spool in spools.items():
                spool.seek(0)
                if self.images == "raw":
                    size = self.description.cameras[name.removeprefix(IMAGE_PREFIX)]
                    _stream(archive, name, (length, *size, 3), spool)
                else:
                    _add(archive, name + OFFSETS, np.array(offsets[name], dtype=np.int64))
                    _stream(archive, name + DATA, (offsets[name][-1],), spool)


def _add(archive: zipfile.ZipFile, name: str, values: np.ndarray) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)


def _stream(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], source: IO[bytes]) -> None:
    """A uint8 array whose bytes come from a file."""
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        shutil.copyfileobj(source, member, 1 << 20)
