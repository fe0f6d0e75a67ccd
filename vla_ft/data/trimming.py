"""Episodes without what robots do before they begin: standing still. Too short ones are left out, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.wrapping import WrappedReader
from vla_ft.errors import UserError


def trimmed_reader(reader: EpisodeReader, still: float | None, shortest: int | None) -> EpisodeReader:
    """The reader without still first frames and without short episodes, or as it is."""
    return reader if still is None and shortest is None else TrimmedReader(reader, still, shortest or 1)


class TrimmedReader(WrappedReader):
    """Episodes from the frame before the first movement on (RDT's reader, ``hdf5_vla_dataset.py``).

    ``still``: an episode begins to move at the first step where any number of proprioception differs by more than this
    from the first step's; None keeps all steps. Episodes with fewer than ``shortest`` recorded steps, or that never
    move, are in ``left_out``. Reads the proprioception of all episodes. Steps count from the new beginning.
    """

    def __init__(self, inner: EpisodeReader, still: float | None, shortest: int) -> None:
        super().__init__(inner)
        self.still, self.shortest = still, shortest
        self.left_out = left_out = dict(inner.left_out)
        self.starts = np.zeros(len(inner.lengths), dtype=np.int64)
        """int64 [episodes]: first step that is kept."""
        for episode in range(len(inner.lengths)):
            self._look_at(episode, left_out)
        self.lengths = np.asarray(inner.lengths, dtype=np.int64) - self.starts

    def _look_at(self, episode: int, left_out: dict[int, str]) -> None:
        steps, name = self.inner.recorded_length(episode), self.inner.name_of(episode)
        if steps < self.shortest:
            left_out[episode] = f"{name} has {steps} steps, fewer than data.shortest={self.shortest}"
        if self.still is None:
            return
        try:
            moved = moving_from(self.inner.all_proprio(episode), self.still)
        except UserError:
            return  # damaged: whoever reads it says so
        if moved is None:
            left_out[episode] = f"{name} never moves by more than data.skip_still={self.still:g}"
        else:
            self.starts[episode] = max(0, moved - 1)

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        return self.inner.read(episode, np.asarray(steps) + self.starts[episode], keys)

    def times(self, episode: int) -> np.ndarray | None:
        """See ``EpisodeReader.times``."""
        recorded = self.inner.times(episode)
        return None if recorded is None else recorded[self.starts[episode] :]

    def instruction_at(self, episode: int, step: int) -> str:
        """See ``EpisodeReader.instruction_at``."""
        return self.inner.instruction_at(episode, step + int(self.starts[episode]))

    def fingerprint(self) -> str:
        """Of the inner reader and of where the episodes begin."""
        return hashlib.sha256(f"trimmed {self.inner.fingerprint()} {self.starts.tolist()}".encode()).hexdigest()

    def reading(self) -> dict[str, str]:
        """Which steps are seen belongs to it."""
        return {**self.inner.reading(), "skip_still": f"{self.still}"}  # type: ignore[attr-defined]


def moving_from(proprio: np.ndarray, threshold: float) -> int | None:
    """First step of [N, P] where any number differs by more than ``threshold`` from the first step's; None: never."""
    moved = (np.abs(proprio - proprio[:1]) > threshold).any(axis=1)
    return int(moved.argmax()) if moved.any() else None
