"""Reader of a folder of ``episode_<number>.npz`` files (layout: ``npz_layout``)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import EpisodeReader, beyond_float32
from vla_ft.data.formats.kept import remembered, stamp
from vla_ft.data.formats.npz_layout import (
    DATA,
    DATASET,
    OFFSETS,
    Member,
    NpzError,
    episode_file,
    members,
    read_dataset,
    read_rows,
    verify,
)
from vla_ft.data.formats.rlds_values import decode_image
from vla_ft.data.formats.tf_example import WireError
from vla_ft.data.sample import IMAGE_PREFIX, ActionKind, ActionMode
from vla_ft.errors import UserError, unknown

_COLUMNS = ("action", "proprio")


class NpzReader(EpisodeReader):
    """Random access to the steps of npz episodes. Opening reads ``dataset.json`` alone.

    Uncompressed members (``np.savez``) are read by rows: a step of a long episode costs its own bytes, after one pass
    over the member that checks its sum, once a process. Compressed members (``np.savez_compressed``) are expanded whole
    for every read: right, but slow; write them uncompressed and encode the images instead.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        cameras: Sequence[str] | None = None,
        fps: float | None = None,
        instruction: str = "",
        action_kind: ActionKind | None = None,
        action_mode: ActionMode | None = None,
        name: str | None = None,
        open_files: int = 8,
        tolerant: bool = False,
    ) -> None:
        """Open a folder. ``cameras``: which to read, all by default. ``fps``: instead of the one in ``dataset.json``.
        ``instruction``: for episodes without one. ``action_kind``, ``action_mode``: instead of those there.
        ``tolerant``: a missing file is told when its episode is read. Raises UserError for a set that is unfinished or
        damaged.
        """
        self.path = Path(path)
        described, self.lengths = read_dataset(self.path)
        present = set(os.listdir(self.path))
        missing = next((n for n in range(len(self.lengths)) if episode_file(n) not in present), None)
        if missing is not None and not tolerant:
            raise UserError(
                f"{self.path} lacks {episode_file(missing)}, but {DATASET} lists {len(self.lengths)} episodes. Copy it "
                "again, or write the set again without that episode."
            )
        for camera in cameras or ():
            if camera not in described.cameras:
                raise unknown("camera", camera, described.cameras)
        if fps is not None and fps <= 0:
            raise UserError(f"data.fps is {fps}, expected steps per second above 0.")
        chosen = described.cameras if cameras is None else cameras
        self.description = dataclasses.replace(
            described,
            name=name or described.name,
            cameras={camera: described.cameras[camera] for camera in chosen},
            fps=float(described.fps if fps is None else fps),
            action_kind=action_kind or described.action_kind,
            action_mode=action_mode or described.action_mode,
        )
        self._default_instruction = instruction
        self._limit = open_files
        self._opened: OrderedDict[int, dict[str, Member]] = OrderedDict()
        self._sound: dict[str, np.ndarray] = {}
        self._fingerprint: str | None = None

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        wanted = np.asarray(steps, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.lengths[episode]):
            raise ValueError(f"steps {wanted} of an episode of {self.lengths[episode]} steps")
        rows, places = np.unique(wanted, return_inverse=True)
        result = {}
        for key in keys:
            camera = key.removeprefix(IMAGE_PREFIX)
            known = key in _COLUMNS or (key.startswith(IMAGE_PREFIX) and camera in self.description.cameras)
            if not known:
                raise unknown("feature", key, (*_COLUMNS, *(IMAGE_PREFIX + c for c in self.description.cameras)))
            try:
                values = self._column(episode, key, rows) if key in _COLUMNS else self._frames(episode, key, rows)
            except (NpzError, OSError) as error:
                raise self._wrong(episode, key, error) from error
            result[key] = values[places]
        return result

    def instruction(self, episode: int) -> str:
        """See ``EpisodeReader.instruction``."""
        try:
            return bytes(self._rows(episode, "instruction")).decode() or self._default_instruction
        except (NpzError, OSError, UnicodeDecodeError) as error:
            raise self._wrong(episode, "instruction", error) from error

    def fingerprint(self) -> str:
        """Hash of lengths and all action and proprio values in float32; computed once, and kept for these
        files as they are (``kept``).
        """
        if self._fingerprint is None:
            files = stamp(self.path, [DATASET, *(episode_file(n) for n in range(len(self.lengths)))])
            self._fingerprint = remembered("fingerprints", "npz", files, self._hash_numbers)
        return self._fingerprint

    def _hash_numbers(self) -> str:
        digest = hashlib.sha256(b"npz")
        for episode, length in enumerate(self.lengths):
            digest.update(f"{episode} {length}".encode())
            values = self.read(episode, np.arange(length), _COLUMNS)
            for key in _COLUMNS:
                digest.update(values[key].tobytes())
        return digest.hexdigest()

    def sources(self) -> dict[str, Path]:
        """Every file that observations are read from, by a name that survives a move of the dataset."""
        return {episode_file(n): self.path / episode_file(n) for n in range(len(self.lengths))}

    def reading(self) -> dict[str, str]:
        """No option changes the values of observations."""
        return {}

    def unread(self) -> list[str]:
        """See ``EpisodeReader.unread``; of the first episode whose members can be listed."""
        cameras = [IMAGE_PREFIX + camera for camera in self.description.cameras]
        read = {*_COLUMNS, "instruction", *(name + end for name in cameras for end in ("", DATA, OFFSETS))}
        found = self._first_members()
        kinds = {name: str(found[name].dtype) for name in _COLUMNS if name in found}
        return [*(name for name in found if name not in read), *beyond_float32(kinds)]

    def _first_members(self) -> dict[str, Member]:
        """Raises UserError when no episode's can be listed."""
        first: UserError | None = None
        for episode in range(len(self.lengths)):
            try:
                return self._members(episode)
            except (NpzError, OSError) as error:
                first = first or self._wrong(episode, "its members", error)
        if first is not None:
            raise first
        return {}

    def name_of(self, episode: int) -> str:
        """The episode's file name."""
        return episode_file(episode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict(), "_sound": {}}

    def _column(self, episode: int, key: str, rows: np.ndarray) -> np.ndarray:
        width = getattr(self.description, f"{key}_dim")
        member = self._member(episode, key, (int(self.lengths[episode]), width))
        contiguous = len(rows) > 0 and int(rows[-1] - rows[0]) + 1 == len(rows)
        selection = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
        return self._rows(episode, member.name, selection).astype(np.float32)

    def _frames(self, episode: int, key: str, rows: np.ndarray) -> np.ndarray:
        size = self.description.cameras[key.removeprefix(IMAGE_PREFIX)]
        length = int(self.lengths[episode])
        if key in self._members(episode):
            self._member(episode, key, (length, *size, 3), np.uint8)
            return self._rows(episode, key, rows)
        member = self._member(episode, key + DATA)
        offsets = self._rows(episode, self._member(episode, key + OFFSETS, (length + 1,), np.int64).name)
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or (offsets[-1],) != member.shape:
            raise NpzError(f"the offsets do not divide the {member.shape} bytes of {member.name}")
        frames = np.empty((len(rows), *size, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            encoded = self._rows(episode, member.name, slice(offsets[row], offsets[row + 1])).tobytes()
            try:
                frames[place] = decode_image(encoded, size)
            except WireError as error:
                raise NpzError(f"step {row}: {error}") from error
        return frames

    def _rows(self, episode: int, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Rows of a member whose sum has been checked in this process."""
        path, member = self.path / episode_file(episode), self._member(episode, name)
        sound = self._sound.setdefault(name, np.zeros(len(self.lengths), dtype=bool))
        if not sound[episode]:
            verify(path, member)
            sound[episode] = True
        return read_rows(path, member, rows)

    def _member(
        self, episode: int, name: str, shape: tuple[int, ...] | None = None, dtype: type | None = None
    ) -> Member:
        found = self._members(episode)
        if name not in found:
            raise NpzError(f"there is no member {name} (there is: {', '.join(found) or 'nothing'})")
        member = found[name]
        if shape is not None and member.shape != shape:
            raise NpzError(f"{name} has shape {member.shape}, expected {shape}")
        if dtype is not None and member.dtype != dtype:
            raise NpzError(f"{name} is {member.dtype}, expected {np.dtype(dtype)}")
        return member

    def _members(self, episode: int) -> dict[str, Member]:
        if episode not in self._opened:
            while len(self._opened) >= self._limit:
                self._opened.popitem(last=False)
            self._opened[episode] = members(self.path / episode_file(episode))
        self._opened.move_to_end(episode)
        return self._opened[episode]

    def _wrong(self, episode: int, key: str, error: Exception) -> UserError:
        return UserError(
            f"{self.path / episode_file(episode)}: {key}: {error}. Copy the file again, or write the set again without "
            "this episode."
        )


def is_npz(path: Path) -> bool:
    """Whether a folder is a set of this format, finished or not."""
    if not path.is_dir():
        return False
    with os.scandir(path) as entries:
        return any(entry.name.startswith("episode_") and entry.name.endswith(".npz") for entry in entries)
