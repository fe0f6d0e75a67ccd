"""Damaged episodes: found by reading all numbers, and left out of a dataset before anything is made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.damage import damage_sentence
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.statistics import FEATURES, refuse_non_finite
from vla_ft.data.wrapping import WrappedReader
from vla_ft.errors import UserError

_SHOWN = 5


@dataclass(frozen=True)
class DamagedEpisode:
    """An episode that cannot be trained on: its number in the whole dataset, its name, and what is wrong."""

    episode: int
    name: str
    reason: str


@dataclass(frozen=True)
class Damaged:
    """The damaged episodes of a dataset of ``total``, in the order of their numbers."""

    episodes: tuple[DamagedEpisode, ...] = ()
    total: int = 0

    @property
    def numbers(self) -> list[int]:
        """Their numbers in the whole dataset."""
        return [one.episode for one in self.episodes]

    def __str__(self) -> str:
        if not self.episodes:
            return "none"
        names = ", ".join(one.name for one in self.episodes[:_SHOWN])
        more = f" and {len(self.episodes) - _SHOWN} more" if len(self.episodes) > _SHOWN else ""
        return f"{len(self.episodes)} of {self.total} episodes left out: {names}{more}"


def find_damaged(reader: EpisodeReader) -> Damaged:
    """Read the numbers and the instruction of every episode, and nothing of its images: a pure function of the data.

    Raises UserError when the machine fails rather than the data, and when every episode is damaged.
    """
    found = []
    for episode in range(len(reader.lengths)):
        reason = damage_of(reader, episode)
        if reason:
            found.append(DamagedEpisode(episode, reader.name_of(episode), reason))
    if len(found) == len(reader.lengths):
        raise UserError(f"All {len(found)} episodes are damaged. The first: {found[0].reason if found else 'none'}")
    return Damaged(tuple(found), len(reader.lengths))


def damage_of(reader: EpisodeReader, episode: int) -> str:
    """What is wrong with an episode's numbers or instruction, in a sentence; empty for a sound one."""
    part, number = reader.resolve(episode)
    names = {"action": part.description.action_names, "proprio": part.description.proprio_names}
    try:
        values = part.read(number, np.arange(part.lengths[number]), FEATURES)
        for key in FEATURES:
            refuse_non_finite(part, number, key, values[key], names[key])
        part.instruction(number)
    except UserError as error:
        return damage_sentence(error)
    return ""


def without_damaged(reader: EpisodeReader, damaged: Damaged) -> EpisodeReader:
    """The dataset without these episodes, the others numbered anew; the reader itself when there are none.

    Raises UserError for a dataset of a mixture of which nothing is left.
    """
    if not damaged.episodes:
        return reader
    if not isinstance(reader, MixtureReader):
        return SoundReader(reader, damaged.numbers)
    parts: dict[str, EpisodeReader] = {}
    for number, (name, part) in enumerate(reader.parts.items()):
        own = reader.episodes_of(number, np.array(damaged.numbers))
        if len(own) == len(part.lengths):
            raise UserError(f"All {len(own)} episodes of {name} are damaged: leave the dataset out of the mix.")
        parts[name] = SoundReader(part, own.tolist()) if len(own) else part
    return MixtureReader(parts, reader.weights, reader.description.name)


class SoundReader(WrappedReader):
    """The episodes of a dataset but some, numbered anew."""

    def __init__(self, inner: EpisodeReader, left_out: Sequence[int]) -> None:
        super().__init__(inner)
        self.kept = np.setdiff1d(np.arange(len(inner.lengths)), np.asarray(left_out, dtype=np.int64))
        """int64 [episodes]: their numbers in the whole dataset."""
        self.lengths = np.asarray(inner.lengths)[self.kept]
        self.left_out = {n: inner.left_out[int(e)] for n, e in enumerate(self.kept) if int(e) in inner.left_out}
        self._fingerprint: str | None = None

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        return self.inner.read(int(self.kept[episode]), steps, keys)

    def all_proprio(self, episode: int) -> np.ndarray:
        """See ``EpisodeReader.all_proprio``."""
        return self.inner.all_proprio(int(self.kept[episode]))

    def recorded_length(self, episode: int) -> int:
        """See ``EpisodeReader.recorded_length``."""
        return self.inner.recorded_length(int(self.kept[episode]))

    def instruction_variants(self, episode: int) -> tuple[tuple[str, ...], ...]:
        """See ``EpisodeReader.instruction_variants``."""
        return self.inner.instruction_variants(int(self.kept[episode]))

    def times(self, episode: int) -> np.ndarray | None:
        """See ``EpisodeReader.times``."""
        return self.inner.times(int(self.kept[episode]))

    def instruction(self, episode: int) -> str:
        """See ``EpisodeReader.instruction``."""
        return self.inner.instruction(int(self.kept[episode]))

    def instruction_at(self, episode: int, step: int) -> str:
        """See ``EpisodeReader.instruction_at``."""
        return self.inner.instruction_at(int(self.kept[episode]), step)

    def name_of(self, episode: int) -> str:
        """The name that it has in the whole dataset."""
        return self.inner.name_of(int(self.kept[episode]))

    def fingerprint(self) -> str:
        """Hash of which episodes are left, of their lengths and of all their numbers in float32; computed once.

        Not the inner reader's: that may need what cannot be read.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(f"without damaged {self.action_offset} {self.kept.tolist()}".encode())
            for episode, length in enumerate(self.lengths):
                values = self.read(episode, np.arange(length), FEATURES)
                digest.update(f"{length}".encode() + values["action"].tobytes() + values["proprio"].tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def sources(self) -> dict[str, Path]:
        """The inner reader's files; one that is missing belonged to an episode that was left out."""
        return {name: path for name, path in self.inner.sources().items() if path.exists()}
