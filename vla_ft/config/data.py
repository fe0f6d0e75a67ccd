"""The ``data`` section: which demonstrations a run reads, and how it opens them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from vla_ft.config.values import STRICT, Fraction, NamedOr, NotNegative
from vla_ft.data.augmentation import AugmentationConfig, RecipeName, find_augmentation
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.mock import MockConfig
from vla_ft.data.opening import (
    NOT_STANDARDIZED,
    MixEntry,
    Positive,
    ReadConfig,
    find_mix,
    open_mixture,
    open_part,
    open_read,
)
from vla_ft.data.trimming import trimmed_reader
from vla_ft.errors import unknown
from vla_ft.weights.datasets import local_dataset


@dataclass(frozen=True, kw_only=True)
class DataConfig(ReadConfig):
    """Which demonstrations, and how they are read."""

    __pydantic_config__ = STRICT

    path: str
    """A folder of demonstrations; ``hub:owner/name[@revision]``, which ``vla-ft fetch dataset`` brought; or ``mock``: a
    small real dataset is then written into the run folder and read. With ``mix``, the folder of its datasets."""
    mix: NamedOr[str, dict[str, MixEntry]] | None = None
    """Several datasets instead of one: a published mix by name, one's own (see ``MixEntry``), or a folder of RDT's
    registration files (``finetune_datasets.json`` and so on)."""
    format: str = "auto"
    augmentation: NamedOr[RecipeName, AugmentationConfig] = "none"
    """Of training images: a published recipe (``cogact``, ``pizero``, ``rdt``) or one's own ranges."""
    drop_unlabeled: bool | None = None
    """Leave out episodes without an instruction, with a count; null does so for published mixes alone, as they do."""
    instructions: Literal["first", "vary"] = "first"
    """Whether training takes the first of several wordings of an episode's instruction, or draws one each time."""
    skip_still: Annotated[float, Field(gt=0)] | None = None
    """Leave out an episode's first frames, up to the one before any joint has moved by more than this (RDT: 0.01)."""
    shortest: Positive | None = None
    """Leave out episodes of fewer steps, by name (RDT: 128)."""
    steps_per_episode: Positive | None = None
    """At most so many steps of an episode in each pass over the data, others in the next (open-pi-zero: 100)."""
    on_damage: Literal["error", "skip"] = "error"
    """An episode whose numbers cannot be read or are not finite ends the run, or is left out, with a count. Which are,
    is found before the run by reading all numbers; an image that cannot be read is an error either way."""
    validation_fraction: Fraction = 0.1
    """Share of the *episodes* held out. 0 trains on everything."""
    workers: NotNegative = 2
    mock: MockConfig = field(default_factory=MockConfig)

    def reader_options(self) -> dict[str, Any]:
        """The reader's own options; under ``skip`` damaged episodes are told when they are read, not at opening."""
        return super().reader_options() | ({"tolerant": True} if self.on_damage == "skip" else {})

    @property
    def augmented(self) -> bool:
        """Whether training images are drawn anew in every epoch: features of them cannot be kept."""
        return find_augmentation(self.augmentation, 0) is not None

    @property
    def drops_unlabeled(self) -> bool:
        """``drop_unlabeled`` with its default resolved."""
        return isinstance(self.mix, str) if self.drop_unlabeled is None else self.drop_unlabeled

    def open(self, path: str) -> EpisodeReader:
        """The reader of all the data, of damaged episodes too (see ``on_damage``); ``path`` may be ``hub:...``.

        Raises UserError.
        """
        options, place = self.reader_options(), local_dataset(path)
        if self.mix is None:
            reader = open_read(place, self.format, NOT_STANDARDIZED, self.cameras, self.image_size, options)
            return self._trimmed(reader)
        entries = {name: self._located(entry) for name, entry in find_mix(self.mix).items()}
        mixture = open_mixture(place, entries, self.cameras, self.image_size, options)
        return MixtureReader({n: self._trimmed(part) for n, part in mixture.parts.items()}, mixture.weights)

    def _trimmed(self, reader: EpisodeReader) -> EpisodeReader:
        return trimmed_reader(reader, self.skip_still, self.shortest)

    def open_one(self, path: str, dataset: str | None) -> EpisodeReader:
        """A dataset at ``path`` as ``dataset`` of the mix is read; without a mix, as the only one. Raises UserError."""
        if self.mix is None:
            return self.open(path)
        entries = find_mix(self.mix)
        if dataset is None and len(entries) == 1:
            dataset = next(iter(entries))
        if dataset is None or dataset not in entries:
            raise unknown("dataset", str(dataset), entries)
        place, entry = local_dataset(path), entries[dataset]
        part = open_part(place, dataset, entry, self.cameras, self.image_size, self.reader_options())
        return self._trimmed(part)

    @staticmethod
    def _located(entry: MixEntry) -> MixEntry:
        """The entry with the folder that a name of a hub stands for."""
        return entry if entry.path is None else dataclasses.replace(entry, path=str(local_dataset(entry.path)))
