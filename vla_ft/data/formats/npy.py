"""Reader of the ACT guide's npy sets (forms: ``npy_layout``)."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.npy_description import describe, is_described, pixels_of
from vla_ft.data.formats.npy_files import NpyError, Rows
from vla_ft.data.formats.npy_layout import STATE, Contents, open_contents
from vla_ft.data.formats.npz_layout import NpzError
from vla_ft.data.formats.open_descriptors import OpenDescriptors
from vla_ft.data.sample import IMAGE_PREFIX, ActionKind, ActionMode
from vla_ft.errors import UserError, unknown

_STORED = {"action": "action", "proprio": STATE}


class NpyReader(EpisodeReader):
    """Random access to the steps of an npy set; ``state`` is ``proprio``.

    Forms without pickles are read row by row from their place in the files. Pickled observations are read whole, once
    in the process that opens them and once in each that gets the reader by pickling; forked ones share them.
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
        allow_pickle: bool = False,
        tolerant: bool = False,
    ) -> None:
        """Open a folder. ``cameras``: which to read, all by default. ``fps``, ``action_kind``, ``action_mode``: what
        the guide's files do not say. ``instruction``: for episodes without one. ``allow_pickle``: read pickled
        observations (arrays, dicts, text and numbers; nothing is executed). ``tolerant``: a step whose dict is unlike
        the others is told when its episode is read. Raises UserError under the guide's names for what is wrong.
        """
        if fps is not None and fps <= 0:
            raise UserError(f"data.fps is {fps}, expected steps per second above 0.")
        self.path, self._allow_pickle = Path(path), allow_pickle
        self._files = OpenDescriptors()
        contents = self._open()
        if contents.damage and not tolerant:
            more = f" ({len(contents.damage)} such steps)" if len(contents.damage) > 1 else ""
            raise _invalid(self.path, f"{next(iter(contents.damage.values()))}{more}")
        self._contents: Contents | None = contents
        self.lengths = contents.lengths
        self._starts = np.cumsum(contents.lengths) - contents.lengths
        about = describe(self.path, contents, cameras)
        given = {"fps": fps, "action_kind": action_kind, "action_mode": action_mode, "name": name}
        told: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        self.description = dataclasses.replace(about.description, **told)
        self.assumed = {key: why for key, why in about.assumed.items() if key not in told}
        self._instructions = [text or instruction for text in about.instructions]
        self._fingerprint: str | None = None

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        wanted = np.asarray(steps, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.lengths[episode]):
            raise ValueError(f"steps {wanted} of an episode of {self.lengths[episode]} steps")
        self._refuse_damaged(episode)
        steps, places = np.unique(wanted, return_inverse=True)
        result = {}
        for key in keys:
            if key not in _STORED and key.removeprefix(IMAGE_PREFIX) not in self.description.cameras:
                raise unknown("feature", key, (*_STORED, *(IMAGE_PREFIX + c for c in self.description.cameras)))
            stored = self._rows(episode, steps, _STORED.get(key, key))
            result[key] = self._converted(episode, steps, key, stored)[places]
        return result

    def instruction(self, episode: int) -> str:
        """See ``EpisodeReader.instruction``."""
        return self._instructions[episode]

    def fingerprint(self) -> str:
        """Hash of lengths, names of dimensions and all action and state values in float32; computed once.

        Names: the same numbers may lie in forms that name them and in forms that do not, and statistics carry them.
        """
        if self._fingerprint is None:
            about = self.description
            digest = hashlib.sha256(f"npy {about.action_names} {about.proprio_names}".encode())
            for episode, length in enumerate(self.lengths):
                digest.update(f"{length}".encode())
                values = self.read(episode, np.arange(length), tuple(_STORED))
                for key in _STORED:
                    digest.update(values[key].tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def sources(self) -> dict[str, Path]:
        """See ``EpisodeReader.sources``: the files of the set, which all episodes share."""
        return dict(self.contents.files)

    def remarks(self) -> list[str]:
        """See ``EpisodeReader.remarks``."""
        return list(self.contents.remarks)

    def counts(self) -> list[str]:
        """See ``EpisodeReader.counts``: what the guide's own verification prints."""
        steps, width = self.contents.action.shape
        return [
            f"Total timesteps: {steps}",
            f"Number of episodes: {len(self.lengths)}",
            f"Action shape: ({steps}, {width})",
            f"Sum of rollout lengths: {int(self.lengths.sum())}",
        ]

    def unread(self) -> list[str]:
        """See ``EpisodeReader.unread``."""
        columns = self.contents.columns
        read = {STATE, *(IMAGE_PREFIX + camera for camera in self.description.cameras)}
        numbers = {"action": self.contents.action, STATE: columns[STATE]}
        wide = [name for name, rows in numbers.items() if not np.can_cast(rows.dtype, np.float32)]
        floats = [name for name in columns if name in read - {STATE} and columns[name].dtype.kind == "f"]
        return [
            *(name for name in columns if name not in read),
            *(f"{name} beyond float32 (it is {numbers[name].dtype})" for name in wide),
            *(f"{name} beyond 8 bits (it is {columns[name].dtype})" for name in floats),
        ]

    def name_of(self, episode: int) -> str:
        """The episode's number: npy sets have no other name for it."""
        return f"episode {episode}"

    @property
    def contents(self) -> Contents:
        """The set's arrays; a process that got this reader by pickling opens them here."""
        if self._contents is None:
            self._contents = self._open()
            if not np.array_equal(self._contents.lengths, self.lengths):
                raise UserError(f"Rollout length mismatch: {self.path} was changed since it was opened. Start again.")
        return self._contents

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_contents": None}

    def _open(self) -> Contents:
        return open_contents(self.path, self._files, allow_pickle=self._allow_pickle, described=is_described(self.path))

    def _refuse_damaged(self, episode: int) -> None:
        damage = self.contents.damage
        if damage:
            start = int(self._starts[episode])
            found = [step for step in damage if start <= step < start + int(self.lengths[episode])]
            if found:
                raise _invalid(self.path, damage[min(found)])

    def _rows(self, episode: int, steps: np.ndarray, name: str) -> np.ndarray:
        """Rows of a column as they are stored, compared with their sums where the set has them."""
        contents, rows = self.contents, steps + self._starts[episode]
        source: Rows = contents.action if name == "action" else contents.columns[name]
        try:
            stored = source.read(rows)
            if contents.sums is not None:
                wanted = contents.sums.read(rows)[:, contents.summed.index(name)]
                _compare(stored, wanted, steps)
        except (NpyError, NpzError, OSError) as error:
            raise UserError(f"{self.path}: {self.name_of(episode)}, {name}: {error}. Copy the set again.") from error
        return stored

    def _converted(self, episode: int, steps: np.ndarray, key: str, stored: np.ndarray) -> np.ndarray:
        if key in _STORED:
            with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is told where numbers are checked
                return stored.astype(np.float32)
        try:
            return pixels_of(stored, steps)
        except ValueError as error:
            raise _invalid(self.path, f"{self.name_of(episode)}, {key}: {error}") from error


def _compare(stored: np.ndarray, wanted: np.ndarray, steps: np.ndarray) -> None:
    for place, row in enumerate(stored):
        if zlib.crc32(np.ascontiguousarray(row).data) != wanted[place]:
            raise NpyError(f"the checksum of step {steps[place]} is not the stored one")


def _invalid(path: Path, what: str) -> UserError:
    return UserError(f"Invalid observation format: {path}: {what}. Write that observation again, or leave it out.")
