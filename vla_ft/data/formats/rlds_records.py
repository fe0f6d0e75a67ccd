"""Records of a dataset by episode: whole, with their checksum, now and then; in between the bytes that are wanted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_ft.data.formats.open_descriptors import OpenDescriptors
from vla_ft.data.formats.rlds_index import Layouts, RldsIndex
from vla_ft.data.formats.rlds_layouts import Fetch, StoredRecord, layout_row
from vla_ft.data.formats.tf_example import Feature, parse_example
from vla_ft.data.formats.tfrecord import damaged_record, read_exactly
from vla_ft.errors import UserError


class RecordStore:
    """Random access to records.

    The first time that a process asks for an episode its record is read whole, its checksum checked, and the kept
    layout compared with what lies there. The next ``steps - 1`` times only the lists that are used are read, of images
    only those that are used; then it is checked again: one check covers as many samples as the record has steps, as in
    a loader that streams. Without kept layouts every time is a first one.
    """

    def __init__(self, index: RldsIndex, open_files: int = 8) -> None:
        self.index = index
        self._files = OpenDescriptors(open_files)
        self._forget()

    def get(self, episode: int) -> Mapping[str, Feature]:
        """The lists of an episode's record. Raises UserError for damage, WireError for what is no Example."""
        if self._process != os.getpid():
            self._forget()
        if self._trusted[episode]:
            self._trusted[episode] -= 1
            row = self._row(episode)
            if row is not None:
                return StoredRecord(row, self._layouts(episode).names, self._fetch(episode))
        features = parse_example(self.index.payload(episode))
        if self._fits(episode, features):
            self._trusted[episode] = max(0, int(self.index.steps[episode]) - 1)
        return features

    def _fetch(self, episode: int) -> Fetch:
        index = self.index
        shard, offset = index.shards[index.shard[episode]], int(index.offset[episode])

        def fetch(begin: int, size: int) -> bytes:
            try:
                return read_exactly(self._files.get(shard), offset + begin, size)
            except EOFError as error:
                what = f"the file ends {error} bytes too early"
                raise damaged_record(shard, int(index.number[episode]), what) from error
            except OSError as error:
                raise UserError(f"Cannot read {shard}: {error.strerror}. Expected a shard of the dataset.") from error

        return fetch

    def _layouts(self, episode: int) -> Layouts:
        return self.index.layouts[int(self.index.split[episode])]

    def _row(self, episode: int) -> np.ndarray | None:
        """The kept layout, int64; None where there is none, any more."""
        path = self._layouts(episode).path
        at, size = int(self.index.layout_at[episode]), int(self.index.layout_size[episode])
        if path is None or not size:
            return None
        try:
            return np.frombuffer(read_exactly(self._files.get(path), at, size), "<i8")
        except (EOFError, OSError):
            return None

    def _fits(self, episode: int, features: Mapping[str, Feature]) -> bool:
        """Whether the kept layout is that of the record: it is a cache, and may be gone or anything."""
        row = self._row(episode)
        known = {name: number for number, name in enumerate(self._layouts(episode).names)}
        return row is not None and np.array_equal(row, layout_row(features, known))

    def _forget(self) -> None:
        self._process = os.getpid()
        self._trusted = np.zeros(len(self.index.steps), dtype=np.int32)
        """How many times an episode may be read before its record is checked again."""

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "open_files": self._files.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
