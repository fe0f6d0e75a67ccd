"""A crash-safe writer of npy sets without pickles (forms: ``npy_layout``)."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vla_ft.data.formats.base import DatasetWriter
from vla_ft.data.formats.npy_description import ABOUT, LAYOUT, episodes_sum
from vla_ft.data.formats.npy_files import NpyError, open_array, write_header
from vla_ft.data.formats.npy_layout import ACTIONS, LENGTHS, OBSERVATIONS, STATE, SUMS
from vla_ft.data.formats.open_descriptors import OpenDescriptors
from vla_ft.data.formats.writing import (
    Step,
    check_image_format,
    checked_steps,
    closing_on_error,
    explained,
    only_writer,
    settle,
    sync_folder,
    write_json,
)
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError

_SETTINGS, _JOURNAL = ".writer.json", ".episodes.jsonl"


class NpyWriter(DatasetWriter):
    """Write ``observations.npy`` (a structured array: one record a step), ``actions.npy`` and ``rollout_length.npy``.

    The guide's own verification opens them: ``obs[i]["image_left"]`` is what it is with an array of dicts. Beside them
    ``vla_ft.json`` holds names, units, rate and instructions, ``checksums.npy`` a sum of every step and column. Steps
    are appended to hidden files; an episode counts when its line is in the journal, and what a killed writer left
    behind that is cut off. Opened on a finished set, ``done`` counts its episodes and nothing more can be added.

    Raises UserError when the folder cannot be written, another process writes it, or it was begun with other settings.
    """

    IMAGES = ("raw",)

    def __init__(self, folder: Path | str, description: DatasetDescription, *, images: str = "raw") -> None:
        check_image_format(images, self.IMAGES)
        self.path = Path(folder)
        self.description = self.kept = description
        self._types = _row_types(description)
        self._committed = 0
        self._lock: int | None = None
        with explained(self.path), closing_on_error(self):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = only_writer(self.path)
            settle(self.path / _SETTINGS, {"description": description.to_json(), "images": images})
            self._finished = (self.path / LENGTHS).is_file()
            self._episodes = [] if self._finished else self._resume()
        self.done = self._count_finished() if self._finished else len(self._episodes)

    def add(self, steps: Iterable[Step], instruction: str) -> None:
        """See ``DatasetWriter.add``."""
        if self._finished:
            raise ValueError(f"{self.path} is finished; nothing can be added")
        length = 0
        try:
            with explained(self.path), contextlib.ExitStack() as stack:
                files = {name: stack.enter_context(self._hidden(name).open("ab")) for name in self._types}
                for step in checked_steps(steps, self.description):
                    self._append(files, step)
                    length += 1
                if not length:
                    raise ValueError("an episode without steps cannot be written")
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
            line = json.dumps([length, instruction]).encode() + b"\n"
            with explained(self.path), (self.path / _JOURNAL).open("ab") as journal:
                journal.write(line)
                journal.flush()
                os.fsync(journal.fileno())
        except BaseException:
            self._cut()
            raise
        self._episodes.append((length, instruction))
        self._committed += len(line)
        self.done += 1

    def finish(self) -> Path:
        """See ``DatasetWriter.finish``. The lengths come last: without them no reader takes the folder for a set."""
        if not self.done:
            raise UserError(f"No episode was written to {self.path}, and a dataset cannot be empty.")
        with explained(self.path):
            if not self._finished:
                self._publish()
                self._finished = True
            (self.path / _JOURNAL).unlink(missing_ok=True)
            sync_folder(self.path)
        self.close()
        return self.path

    def close(self) -> None:
        """See ``DatasetWriter.close``."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hidden(self, name: str) -> Path:
        return self.path / f".{name}.unfinished"

    def _append(self, files: Mapping[str, IO[bytes]], step: Step) -> None:
        record = np.zeros((), dtype=self._types[OBSERVATIONS[0]])
        parts = {ACTIONS: np.ascontiguousarray(step["action"], dtype=self._types[ACTIONS].base)}
        for name in record.dtype.names or ():
            parts[name] = np.ascontiguousarray(step["proprio" if name == STATE else name])
            record[name] = parts[name]
        sums = np.array([zlib.crc32(part.data) for part in parts.values()], dtype="<u4")
        for name, row in ((ACTIONS, parts[ACTIONS]), (OBSERVATIONS[0], record), (SUMS, sums)):
            files[name].write(row.tobytes())

    def _resume(self) -> list[tuple[int, str]]:
        """The committed episodes; a torn last line of the journal and rows without one are cut off."""
        for name in self._types:  # an interrupted ``finish`` had given some files their names
            if (self.path / name).is_file():
                os.replace(self.path / name, self._hidden(name))
        episodes: list[tuple[int, str]] = []
        journal = self.path / _JOURNAL
        for line in journal.read_bytes().splitlines(keepends=True) if journal.is_file() else ():
            if not line.endswith(b"\n"):
                break
            length, instruction = json.loads(line)
            episodes.append((int(length), str(instruction)))
            self._committed += len(line)
        self._episodes = episodes
        self._cut()
        return episodes

    def _cut(self) -> None:
        """Bring the journal to its committed lines, then every file to their steps."""
        if (self.path / _JOURNAL).is_file():
            os.truncate(self.path / _JOURNAL, self._committed)
        steps = sum(length for length, _ in self._episodes)
        for name, kind in self._types.items():
            path, header = self._hidden(name), write_header(kind.base, (0, *kind.shape))
            if not path.is_file():
                path.write_bytes(header)
            size = len(header) + steps * kind.itemsize
            if path.stat().st_size < size:
                raise UserError(f"{path} lacks rows of committed episodes. Remove {self.path} to begin anew.")
            os.truncate(path, size)

    def _publish(self) -> None:
        steps = sum(length for length, _ in self._episodes)
        for name, kind in self._types.items():
            with self._hidden(name).open("r+b") as file:
                file.write(write_header(kind.base, (steps, *kind.shape)))
                file.flush()
                os.fsync(file.fileno())
        texts = list(dict.fromkeys(instruction for _, instruction in self._episodes))
        number = {text: place for place, text in enumerate(texts)}
        numbers, steps_of = [number[text] for _, text in self._episodes], [length for length, _ in self._episodes]
        about: dict[str, Any] = {"layout": LAYOUT, "description": self.description.to_json()}
        about |= {"instructions": texts, "instruction_of": numbers}
        write_json(self.path / ABOUT, about | {"episodes_sha256": episodes_sum(texts, numbers, steps_of)})
        for name in self._types:
            os.replace(self._hidden(name), self.path / name)
        sync_folder(self.path)
        lengths = np.array(steps_of, dtype="<i8")
        with self._hidden(LENGTHS).open("wb") as file:
            file.write(write_header(lengths.dtype, lengths.shape) + lengths.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._hidden(LENGTHS), self.path / LENGTHS)

    def _count_finished(self) -> int:
        try:
            return open_array(self.path / LENGTHS, OpenDescriptors(1)).shape[0]
        except NpyError as error:
            raise UserError(f"{self.path} is damaged: {error}. Remove that folder to begin anew.") from error


def _row_types(description: DatasetDescription) -> dict[str, np.dtype]:
    """What a row of each file is. Raises UserError for what such files cannot hold."""
    cameras = [(f"{IMAGE_PREFIX}{camera}", "u1", (*size, 3)) for camera, size in description.cameras.items()]
    if not description.action_dim or not (cameras or description.proprio_dim):
        raise UserError(
            f"{description.name} has no action, or neither cameras nor proprio, and npy files cannot be without. Name "
            "its columns: action=[...] proprio=[...]."
        )
    record = np.dtype([*cameras, (STATE, "<f4", (description.proprio_dim,))])
    try:
        write_header(record, (0,))
    except (ValueError, UnicodeError) as error:
        raise UserError(f"Cameras {', '.join(description.cameras)} cannot be named in an .npy file. Rename.") from error
    return {
        ACTIONS: np.dtype(("<f4", (description.action_dim,))),
        OBSERVATIONS[0]: record,
        SUMS: np.dtype(("<u4", (2 + len(cameras),))),
    }
