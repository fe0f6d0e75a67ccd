"""From a reader to batches: a resumable training stream and a fixed validation subset.

Which samples a batch holds is a pure function of (seed, position) (``vla_ft.data.order``), so a run's place in its data
is one integer: no loader or worker has a state to save. To resume, build the loader at the position.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.order import BatchPlan, ShuffledOrder, hash_seed
from vla_ft.data.sample import IMAGE_PREFIX, Sample
from vla_ft.data.windows import TrainingPlaces, WindowIndex, WindowSpec, build_sample
from vla_ft.errors import UserError, nearest

Batch = dict[str, torch.Tensor]
_WORKER_GRACE = 20.0
"""Seconds that a worker goes on after SIGTERM."""


class Collator(Protocol):
    """What loading needs of a policy's Processor: which steps and keys to read, and how samples become a batch."""

    window: WindowSpec
    keys: tuple[str, ...]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Normalise and stack samples; runs in the workers."""


class Augment(Protocol):
    """What changes the pictures of training samples (``data.augmentation``); a function of the position alone."""

    def __call__(self, sample: Sample, position: int) -> Sample:
        """The sample at a global position with other images."""


class FeatureSource(Protocol):
    """Cached features of samples (``vla_ft.data.feature_store``)."""

    def read(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Tensors [B, ...] of samples (episode, step)."""


@dataclass(frozen=True)
class Fetched:
    """The samples of a batch, and the cached features that go with them."""

    samples: list[Sample]
    features: Batch


@dataclass(frozen=True)
class Failure:
    """A user's mistake met in a worker, on its way to the main process, where it is raised in its own words."""

    message: str


class WindowDataset(Dataset[Sample]):
    """Samples of a fixed list of windows. ``windows``: int64 [n], indices into ``index``; ``features`` come along."""

    def __init__(
        self,
        reader: EpisodeReader,
        index: WindowIndex,
        window: WindowSpec,
        keys: Sequence[str],
        windows: np.ndarray,
        features: FeatureSource | None = None,
    ) -> None:
        self.reader, self.index, self.window, self.keys = reader, index, window, tuple(keys)
        self.windows = windows
        self.features = features

    def __len__(self) -> int:
        return len(self.windows)

    def resolve(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """(episode, step) of sample numbers."""
        return [self.index.locate(int(self.windows[n])) for n in numbers]

    def finish(self, sample: Sample, number: int) -> Sample:
        """What is done to a sample after reading: nothing."""
        return sample

    def __getitem__(self, number: int) -> Sample:
        return self.finish(self._read(*self.resolve([number])[0]), number)

    def __getitems__(self, numbers: Sequence[int]) -> Fetched | Failure:
        """The samples of a batch (torch's fetcher calls this)."""
        try:
            places = self.resolve(numbers)
            samples = [self.finish(self._read(*place), number) for number, place in zip(numbers, places, strict=True)]
            return Fetched(samples, self.features.read(places) if self.features is not None else {})
        except UserError as error:
            return Failure(f"{error} `vla-ft data check` lists all damage of a dataset.")

    def _read(self, episode: int, step: int) -> Sample:
        try:
            return build_sample(self.reader, episode, step, self.window, self.keys)
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(f"sample at step {step} of {self.reader.name_of(episode)} failed: {error}") from error


class TrainingStream(WindowDataset):
    """Samples by global position, endless: sample i of epoch e is the window that ``places`` puts there."""

    def __init__(
        self,
        reader: EpisodeReader,
        places: TrainingPlaces,
        window: WindowSpec,
        keys: Sequence[str],
        augmentation: Augment | None = None,
        features: FeatureSource | None = None,
        wordings: int | None = None,
    ) -> None:
        """``wordings``: a seed by which a variant of the instruction is drawn for each position; None: the first."""
        super().__init__(reader, places.index, window, keys, np.empty(0, dtype=np.int64), features)
        self.places, self.augmentation, self.wordings = places, augmentation, wordings

    def __len__(self) -> int:
        """Positions of one epoch; they go on beyond."""
        return len(self.places)

    def resolve(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """(episode, step) of global positions."""
        return self.places.at(numbers)

    def finish(self, sample: Sample, number: int) -> Sample:
        """The sample with its images augmented and its instruction worded anew, where that is asked for."""
        if self.wordings is not None:
            (episode, _), draw = self.resolve([number])[0], hash_seed(f"wording {self.wordings} {number}")
            sample["task"] = {"language_instruction": worded(self.reader.instruction_variants(episode), int(draw))}
        return sample if self.augmentation is None else self.augmentation(sample, number)


def worded(variants: Sequence[Sequence[str]], draw: int) -> str:
    """One of the wordings: a group by the number ``draw``, then a wording of it, each equally likely."""
    group = variants[draw % len(variants)]
    return group[draw // len(variants) % len(group)]


class Loader(DataLoader[Any]):
    """A DataLoader that raises a worker's UserError in its own words and leaves torch's default generator alone."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Not a generator itself: the workers start here and now, as with any DataLoader.
        return self._checked(super().__iter__())

    def _checked(self, batches: Iterator[Any]) -> Iterator[Batch]:
        try:
            for batch in batches:
                if isinstance(batch, Failure):
                    raise UserError(batch.message)
                yield batch
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers now. Left to the garbage collector, torch waits 5 s for each when it meets a cycle."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


class _Planned:
    """A plan as a batch sampler: plain integers for the workers' queues."""

    def __init__(self, plan: BatchPlan, start: int, steps: int | None) -> None:
        self.plan, self.start, self.steps = plan, start, steps

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.plan.batches(self.start, self.steps))


class _Collate:
    """The processor's collation, in the worker, joined by cached features; it lets failures pass."""

    def __init__(self, processor: Collator) -> None:
        self.processor = processor

    def __call__(self, fetched: Fetched | Failure) -> Batch | Failure:
        if isinstance(fetched, Failure):
            return fetched
        try:
            return {**self.processor.collate(fetched.samples), **fetched.features}
        except UserError as error:
            return Failure(str(error))


def build_loader(
    reader: EpisodeReader,
    episodes: np.ndarray,
    processor: Collator,
    plan: BatchPlan,
    *,
    seed: int,
    places: TrainingPlaces | None = None,
    augmentation: Augment | None = None,
    start: int = 0,
    steps: int | None = None,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
    start_method: str | None = None,
    features: FeatureSource | None = None,
    wordings: int | None = None,
) -> Loader:
    """Batches of this rank from global position ``start``, collated by ``processor``: ``plan.accumulation`` batches of
    ``plan.per_device`` samples an optimizer step, endless unless ``steps`` optimizer steps are asked for.

    The stream runs on over epochs and drops nothing; after an optimizer step the position grows by
    ``plan.global_batch``, whatever the workers have read ahead. ``places`` says where each position lies; by default
    epochs are permutations of all windows of ``episodes``, by ``seed``. ``len(loader.dataset)`` is the number of
    positions of an epoch. ``features`` join the batches. ``wordings`` is the seed of drawn instructions. Raises
    UserError when the dataset lacks what the processor needs.
    """
    index = _index(reader, episodes, processor)
    places = places or TrainingPlaces(index, ShuffledOrder(len(index), seed))
    dataset = TrainingStream(reader, places, processor.window, processor.keys, augmentation, features, wordings)
    options = _options(processor, workers, prefetch, pin_memory, start_method)
    return Loader(dataset, batch_sampler=_Planned(plan, start, steps), **options)


def build_validation_loader(
    reader: EpisodeReader,
    episodes: np.ndarray,
    processor: Collator,
    *,
    batch_size: int,
    windows: int | None = None,
    shuffle: bool = False,
    world: int = 1,
    rank: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
    start_method: str | None = None,
    features: FeatureSource | None = None,
) -> Loader:
    """Finite batches over ``windows`` evenly spaced windows of held-out episodes (all by default), the same every time;
    ``shuffle`` draws their order anew at every pass.

    Rank r takes every ``world``-th of them, so ranks may differ by one sample and the last batch may be short: add up
    sums and counts, not means. Raises UserError like ``build_loader``.
    """
    index = _index(reader, episodes, processor)
    chosen = evenly_spaced(len(index), windows)[rank::world]
    dataset = WindowDataset(reader, index, processor.window, processor.keys, chosen, features)
    options = _options(processor, workers, prefetch, pin_memory, start_method)
    return Loader(dataset, batch_size=batch_size, shuffle=shuffle, **options)


def build_scan(
    reader: EpisodeReader,
    processor: Collator,
    batches: Sequence[Sequence[int]],
    *,
    observation_steps: int,
    workers: int = 0,
    prefetch: int = 2,
) -> Loader:
    """Given batches of row numbers, where rows are all steps of all episodes in the reader's order.

    Samples have ``observation_steps`` steps, whatever the processor's window says. Raises UserError like
    ``build_loader``.
    """
    index = _index(reader, np.arange(len(reader.lengths)), processor)
    window = WindowSpec(observation_steps=observation_steps, action_horizon=processor.window.action_horizon)
    dataset = WindowDataset(reader, index, window, processor.keys, np.arange(len(index), dtype=np.int64))
    return Loader(
        dataset, batch_sampler=[list(rows) for rows in batches], **_options(processor, workers, prefetch, False, None)
    )


def evenly_spaced(count: int, wanted: int | None) -> np.ndarray:
    """``wanted`` distinct indices of [0, count), int64, in the middles of equal parts; all of them when fewer exist."""
    if wanted is None or wanted >= count:
        return np.arange(count, dtype=np.int64)
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * count // (2 * wanted)


def _index(reader: EpisodeReader, episodes: np.ndarray, processor: Collator) -> WindowIndex:
    proprio = ("proprio",) if reader.description.proprio_dim else ()
    known = (*proprio, *(IMAGE_PREFIX + camera for camera in reader.description.cameras))
    for key in processor.keys:
        if key not in known:
            there = ", ".join(known) or "neither cameras nor proprioception that all its parts share"
            raise UserError(
                f"The policy needs '{key}', but dataset {reader.description.name} has {there}."
                f"{nearest(key, known)} Name the cameras in the policy's configuration as the dataset does."
            )
    index = WindowIndex(reader.lengths, episodes)
    if not len(index):
        raise UserError(f"No episodes of {reader.description.name} are left to read. Expected at least one.")
    return index


def _options(
    processor: Collator, workers: int, prefetch: int, pin_memory: bool, start_method: str | None
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "collate_fn": _Collate(processor),
        "pin_memory": pin_memory,
        # torch draws a seed for the workers, which nothing uses: not from the generator that the model's noise uses.
        "generator": torch.Generator(),
    }
    if workers:
        options |= {
            "num_workers": workers,
            "prefetch_factor": prefetch,
            "persistent_workers": True,
            "worker_init_fn": _start_worker,
            "multiprocessing_context": start_method,
        }
    return options


def _start_worker(number: int) -> None:
    # Workers share the cores with each other and the trainer.
    torch.set_num_threads(1)
    # Schedulers and terminals signal every process. The trainer still needs its workers for the step in hand, and ends
    # them after the checkpoint; the timer is for the case that nobody does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)


def _leave_later(*_: object) -> None:
    timer = threading.Timer(_WORKER_GRACE, os._exit, (0,))
    timer.daemon = True  # a worker that is told to end does so at once
    timer.start()
