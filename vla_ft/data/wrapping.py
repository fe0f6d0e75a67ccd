"""Readers around readers: the same episodes with other images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.images import resized
from vla_ft.data.sample import IMAGE_PREFIX


class WrappedReader(EpisodeReader):
    """Everything as the inner reader has it. What a wrapper changes, it overrides."""

    def __init__(self, inner: EpisodeReader) -> None:
        self.inner = inner
        self.description, self.lengths, self.action_offset = inner.description, inner.lengths, inner.action_offset
        self.assumed, self.left_out = inner.assumed, inner.left_out

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        return self.inner.read(episode, steps, keys)

    def all_proprio(self, episode: int) -> np.ndarray:
        """See ``EpisodeReader.all_proprio``."""
        return self.inner.all_proprio(episode)

    def recorded_length(self, episode: int) -> int:
        """See ``EpisodeReader.recorded_length``."""
        return self.inner.recorded_length(episode)

    def instruction_variants(self, episode: int) -> tuple[tuple[str, ...], ...]:
        """See ``EpisodeReader.instruction_variants``."""
        return self.inner.instruction_variants(episode)

    def times(self, episode: int) -> np.ndarray | None:
        """See ``EpisodeReader.times``."""
        return self.inner.times(episode)

    def instruction(self, episode: int) -> str:
        """See ``EpisodeReader.instruction``."""
        return self.inner.instruction(episode)

    def instruction_at(self, episode: int, step: int) -> str:
        """See ``EpisodeReader.instruction_at``."""
        return self.inner.instruction_at(episode, step)

    def fingerprint(self) -> str:
        """See ``EpisodeReader.fingerprint``."""
        return self.inner.fingerprint()

    def sources(self) -> dict[str, Path]:
        """Every file that observations are read from, as the inner reader names them."""
        return self.inner.sources()  # type: ignore[attr-defined, no-any-return]

    def reading(self) -> dict[str, str]:
        """What changes observations read from the same files."""
        return self.inner.reading()  # type: ignore[attr-defined, no-any-return]

    def unread(self) -> list[str]:
        """See ``EpisodeReader.unread``."""
        return self.inner.unread()

    def remarks(self) -> list[str]:
        """See ``EpisodeReader.remarks``."""
        return self.inner.remarks()

    def counts(self) -> list[str]:
        """See ``EpisodeReader.counts``."""
        return self.inner.counts()

    def name_of(self, episode: int) -> str:
        """See ``EpisodeReader.name_of``."""
        return self.inner.name_of(episode)


class NamedReader(WrappedReader):
    """A dataset under the name that it has in a mixture."""

    def __init__(self, inner: EpisodeReader, name: str) -> None:
        super().__init__(inner)
        self.description = dataclasses.replace(inner.description, name=name)

    def name_of(self, episode: int) -> str:
        """The inner name behind the dataset's."""
        return f"{self.description.name}: {self.inner.name_of(episode)}"


class ResizedReader(WrappedReader):
    """Every camera at one size, (height, width), as the published loaders resize (``vla_ft.data.images.resized``)."""

    def __init__(self, inner: EpisodeReader, size: tuple[int, int]) -> None:
        super().__init__(inner)
        self.size = size
        self.description = dataclasses.replace(
            inner.description, cameras=dict.fromkeys(inner.description.cameras, size)
        )

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``; images uint8 [n, height, width, 3]."""
        values = dict(self.inner.read(episode, steps, keys))
        for key in values:
            if key.startswith(IMAGE_PREFIX) and values[key].shape[1:3] != self.size:
                frames = [resized(image, self.size) for image in values[key]]
                values[key] = np.stack(frames) if frames else np.empty((0, *self.size, 3), np.uint8)
        return values

    def reading(self) -> dict[str, str]:
        """The size belongs to it."""
        return {**self.inner.reading(), "image_size": f"{self.size}"}  # type: ignore[attr-defined]
