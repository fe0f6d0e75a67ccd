"""A crash-safe writer of RLDS datasets, which ``tensorflow_datasets`` opens like its own, without TensorFlow.

Episodes go to ``<folder>/.<version>.unfinished``; ``finish`` gives the shards their names and the folder its place,
``<folder>/<version>``. A step has ``observation/image_<camera>`` (``image`` for camera ``primary``),
``observation/state``, ``action``, ``language_instruction``, and RLDS's ``is_first``, ``is_last``, ``is_terminal``,
``reward`` (1 at the last step) and ``discount``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import DatasetWriter
from vla_ft.data.formats.rlds_mapping import SIDECAR, camera_name, image_feature
from vla_ft.data.formats.tf_example import serialize_example
from vla_ft.data.formats.tfds_features import features_json, image, tensor, text
from vla_ft.data.formats.tfds_folder import FEATURES, INFO
from vla_ft.data.formats.tfrecord import frame, scan, sound_length
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

_SHARD = re.compile(r"shard-(\d{5})|.+\.tfrecord-(\d{5})-of-\d{5}")
_SPLIT = "train"


class RldsWriter(DatasetWriter):
    """Write a TFDS folder of one split, ``train``, an episode a record.

    ``name``: what TFDS calls the dataset, by default the description's name. Images are stored as PNG (exact) or JPEG
    of ``jpeg_quality``. A shard is closed when it has ``shard_bytes``. One episode's encoded images are in memory at a
    time. Opened on a finished dataset of the same settings, ``done`` counts its episodes and nothing more can be added.

    Raises UserError when the folder cannot be written, another process writes it, or it was begun with other settings.
    """

    IMAGES = IMAGE_FORMATS

    def __init__(
        self,
        folder: Path | str,
        description: DatasetDescription,
        *,
        name: str | None = None,
        version: str = "1.0.0",
        images: str = "png",
        jpeg_quality: int = 95,
        shard_bytes: int = 128 << 20,
    ) -> None:
        check_image_format(images)
        self.name = _tfds_name(name or description.name)
        self.version = version
        self.description = dataclasses.replace(description, name=self.name)
        cameras = {camera_name(image_feature(camera)): size for camera, size in description.cameras.items()}
        self.kept = dataclasses.replace(self.description, cameras=cameras)
        self.images, self.jpeg_quality, self.shard_bytes = images, jpeg_quality, shard_bytes
        self.path = Path(folder) / version
        self._work = Path(folder) / f".{version}.unfinished"
        self._lock: int | None = None
        self._counts: list[int] = []
        self._finished = self.path.exists()
        if self._finished:
            if not self._marker(self.path).is_file():
                raise UserError(
                    f"{self.path} is there and was not written by this project (it has no {SIDECAR}). Give another "
                    "folder, or another version."
                )
            settle(self._marker(self.path), self._settings())
            self._shards = self._list_shards(self.path)
        else:
            with explained(self._work), closing_on_error(self):
                self._work.mkdir(parents=True, exist_ok=True)
                self._lock = only_writer(self._work)
                settle(self._marker(self._work), self._settings())
                self._shards = self._recover()
        self.done = sum(self._counts)

    def add(self, steps: Iterable[Step], instruction: str) -> None:
        """See ``DatasetWriter.add``."""
        if self._finished:
            raise ValueError(f"{self.path} is finished; nothing can be added")
        rows = self._rows(steps)
        if not rows["is_first"]:
            raise ValueError("an episode without steps cannot be written")
        record = frame(serialize_example(self._features(rows, instruction)))
        with explained(self._work):
            is_new = not self._shards or self._shards[-1].stat().st_size >= self.shard_bytes
            shard = self._work / f"shard-{len(self._shards):05d}" if is_new else self._shards[-1]
            _append(shard, record)
        if is_new:
            self._shards.append(shard)
            self._counts.append(0)
        self._counts[-1] += 1
        self.done += 1

    def finish(self) -> Path:
        """See ``DatasetWriter.finish``. Returns ``<folder>/<version>``."""
        if self._finished:
            return self.path
        if not self.done:
            raise UserError(f"No episode was written to {self._work}, and an RLDS dataset cannot be empty.")
        with explained(self._work):
            write_json(self._work / FEATURES, features_json(self._nodes()))
            write_json(self._work / INFO, self._info())
            for place, shard in enumerate(self._shards):
                shard.rename(self._work / self._shard_name(place))
            sync_folder(self._work)
            self._work.rename(self.path)
            sync_folder(self.path.parent)
        self._finished = True
        self.close()
        return self.path

    def close(self) -> None:
        """See ``DatasetWriter.close``."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _rows(self, steps: Iterable[Step]) -> dict[str, list[Any]]:
        """Columns of an episode: encoded images, float32 rows."""
        names = ["action", "proprio", *(IMAGE_PREFIX + camera for camera in self.description.cameras)]
        rows: dict[str, list[Any]] = {name: [] for name in (*names, "is_first")}
        for step in checked_steps(steps, self.description):
            for name, value in step.items():
                encoded = name.startswith(IMAGE_PREFIX)
                rows[name].append(encode_image(value, self.images, self.jpeg_quality) if encoded else value)
            rows["is_first"].append(not rows["is_first"])
        return rows

    def _features(self, rows: dict[str, list[Any]], instruction: str) -> dict[str, list[bytes] | np.ndarray]:
        length = len(rows["is_first"])
        last = np.arange(length) == length - 1
        features: dict[str, list[bytes] | np.ndarray] = {
            "action": np.concatenate(rows["action"]),
            "language_instruction": [instruction.encode()] * length,
            "is_first": (np.arange(length) == 0).astype(np.int64),
            "is_last": last.astype(np.int64),
            "is_terminal": last.astype(np.int64),
            "reward": last.astype(np.float32),
            "discount": np.ones(length, np.float32),
        }
        if self.description.proprio_dim:
            features["observation/state"] = np.concatenate(rows["proprio"])
        for camera in self.description.cameras:
            features[image_feature(camera)] = rows[IMAGE_PREFIX + camera]
        return {f"steps/{name}": values for name, values in features.items()}

    def _nodes(self) -> dict[str, dict[str, Any]]:
        nodes = {name: tensor((), "bool") for name in ("is_first", "is_last", "is_terminal")}
        nodes |= {name: tensor((), "float32") for name in ("reward", "discount")}
        nodes |= {"action": tensor((self.description.action_dim,), "float32"), "language_instruction": text()}
        if self.description.proprio_dim:
            nodes["observation/state"] = tensor((self.description.proprio_dim,), "float32")
        for camera, size in self.description.cameras.items():
            nodes[image_feature(camera)] = image(size, self.images)
        return nodes

    def _info(self) -> dict[str, Any]:
        framing = 16  # bytes a record, which TFDS does not count
        size = sum(shard.stat().st_size for shard in self._shards) - framing * self.done
        split = {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": _SPLIT,
            "numBytes": str(size),
            "shardLengths": [str(count) for count in self._counts],
        }
        return {"fileFormat": "tfrecord", "name": self.name, "splits": [split], "version": self.version}

    def _settings(self) -> dict[str, Any]:
        return {
            "description": self.description.to_json(),
            "images": self.images,
            "jpeg_quality": self.jpeg_quality,
            "shard_bytes": self.shard_bytes,
        }

    @staticmethod
    def _marker(folder: Path) -> Path:
        return folder / SIDECAR

    def _shard_name(self, place: int) -> str:
        return f"{self.name}-{_SPLIT}.tfrecord-{place:05d}-of-{len(self._shards):05d}"

    def _list_shards(self, folder: Path) -> list[Path]:
        """Shards in order, under the names of work or of the finished set; ``_counts`` gets their records."""
        found = {int(m[1] or m[2]): p for p in folder.iterdir() if (m := _SHARD.fullmatch(p.name))}
        shards = [found[place] for place in sorted(found)]
        self._counts = [sum(1 for _ in scan(shard, payloads=False)) for shard in shards[:-1]]
        if shards:
            self._counts.append(sound_length(shards[-1])[1])
        return shards

    def _recover(self) -> list[Path]:
        """What an interrupted writer committed. Only the last shard can have a torn end, which is cut off."""
        shards = []
        for place, shard in enumerate(self._list_shards(self._work)):
            shards.append(shard.rename(self._work / f"shard-{place:05d}"))
        if shards:
            os.truncate(shards[-1], sound_length(shards[-1])[0])
            if not self._counts[-1]:
                shards.pop().unlink()
                self._counts.pop()
        return shards


def _append(shard: Path, record: bytes) -> None:
    """Add a record and flush it to the disk; when that fails, nothing of it stays."""
    with shard.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), before)
            if not before:
                shard.unlink()
            raise


def _tfds_name(name: str) -> str:
    """TFDS takes a letter, then letters, digits and underscores."""
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII)
    return cleaned if cleaned[:1].isalpha() else f"set_{cleaned}"
