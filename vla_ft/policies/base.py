"""The policy contract: a Model with weights, and a Processor without. Trainer, planner and server know only these."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor, nn

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.data.windows import WindowSpec

Batch = dict[str, Tensor]
"""Tensors with the batch dimension first, ready for the model. Keys are the policy's own, but for two that every batch
has: ``action`` float [B, horizon, A], normalised, and ``action_pad_mask`` bool [B, horizon], True where real. Batches
of a mixture carry ``dataset`` int64 [B] as well: the place of each sample's dataset among the statistics' parts. Where
the policy's actions have dimensions that a robot lacks, ``action_mask`` [B, A] is 1 in those that it has, else 0:
measured errors are means over these."""


FEATURE_PREFIX = "feature_"
"""Batch keys of cached features are ``feature_<name>``."""


@dataclass(frozen=True, kw_only=True)
class FrozenFeatures:
    """What a part of a model yields that need not be computed twice while the part is frozen.

    ``scope`` says what a feature depends on. ``frame``: on one observation step alone. It is stored once a frame,
    ``compute`` gets samples of one observation step, and a batch carries it as [B, T, ...] over the observation window,
    oldest first (steps before the episode repeat its first frame, as all observations do). ``sample``: on the whole
    sample (window, instruction), and a batch carries it as [B, ...].
    """

    module: str
    """Path of the part inside the model (``vision.trunk``). It can be taken out when its features are cached."""
    inputs: tuple[str, ...]
    """Batch keys that this part reads."""
    replaces: tuple[str, ...]
    """Those of them that nothing but declared parts reads: they need not be loaded when the features are cached."""
    outputs: tuple[str, ...]
    """Batch keys of its features, which ``forward`` and ``sample`` use where they are present: ``feature_...``."""
    scope: Literal["frame", "sample"]
    compute: Callable[[Batch], dict[str, Tensor]]
    """Features [B, ...] of a batch, by the keys of ``outputs``; shape and dtype are the same for every sample."""
    settings: dict[str, str]
    """What besides weights and inputs decides the numbers, such as image size and normalisation, in words."""


@dataclass(frozen=True, kw_only=True)
class SetupFacts:
    """What a run is about to do, for policies that repeat it in a published code's words."""

    engine: str
    processes: int
    per_device: int
    accumulation: int
    recompute: bool
    precision: str
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    steps: int
    samples: int
    """Training windows of an epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainedFacts:
    """What a checkpoint knows beside its weights: for published layouts that keep it too."""

    config: object
    """The policy's own."""
    description: DatasetDescription
    statistics: DatasetStatistics
    step: int
    start: str | None = None
    """The weights that its run began with (``init.path``)."""


@dataclass
class Loss:
    """What a training step returns: the scalar to differentiate, and named detached scalars to log.

    ``per_step``: metrics that are means over the batch's real action steps, each with its factor in ``loss``. The rest
    of the loss and the other metrics are means over samples. Only so do means of batches add up to that of a set.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    per_step: dict[str, float] = field(default_factory=dict)


class Model(nn.Module, ABC):
    """Single-device code. Engines (DDP, FSDP2, DeepSpeed) are applied from outside."""

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """Training loss of a batch. Randomness comes from torch's default generator alone."""

    @abstractmethod
    def sample(self, batch: Batch) -> Tensor:
        """Normalised action chunk float [B, horizon, A]. Never reads targets that the batch may carry."""

    def sample_metrics(self, predicted: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Published measures of what ``sample`` gave for a batch with targets. Validation logs the mean of scalars, and
        of those with a number a sample [B] the mean over each dataset's samples, behind the dataset's name."""
        return {}

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named parts (``backbone``, ``vlm``, ``action``...), disjoint and complete: freezing, learning rates and the
        printed counts go by these names."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The repeated layers, in order: what sharding wraps and activation checkpointing recomputes."""

    def frozen_features(self) -> dict[str, FrozenFeatures]:
        """Parts whose outputs may be computed once and cached when they are frozen, by the names of
        ``parameter_groups``. None by default."""
        return {}


class Processor(ABC):
    """Samples to batches and normalised actions back to robot units. Holds no weights; workers get a copy."""

    window: WindowSpec
    """Which steps around an index the policy needs."""
    keys: tuple[str, ...]
    """Observation keys it needs (``proprio``, ``image_<camera>``...), in its own order."""
    statistics: DatasetStatistics
    example_instruction: str | None = None
    """An instruction that ``collate`` takes where a batch is only imagined (the planner's); None: any."""
    reads_instructions: bool = False
    """Whether ``require`` wants to see every instruction before the first step."""
    reads_episodes: bool = False
    """Whether ``informed`` wants to see the training episodes before the first step."""
    random_keys: tuple[str, ...] = ()
    """Batch keys whose values ``collate`` draws at random (augmented images): nothing computed from them is cached."""

    def require(self, instructions: Collection[str]) -> None:
        """Raises UserError when an instruction of the data cannot be used; training asks before its first step."""
        return None

    def tokens_of(self, instruction: str) -> Sequence[int]:
        """The numbers that an instruction becomes; none for a policy that reads no words."""
        return ()

    def informed(self, reader: EpisodeReader, episodes: np.ndarray) -> Processor:
        """A copy that knows of the training episodes what ``statistics`` cannot tell. One process asks, for all."""
        return self

    def without(self, keys: Collection[str]) -> Processor:
        """A copy that neither reads nor collates these batch keys: a cache holds what the model makes of them."""
        narrowed = copy.copy(self)
        narrowed.keys = tuple(key for key in self.keys if key not in keys)
        return narrowed

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Normalise and stack samples."""

    @abstractmethod
    def unnormalize(self, actions: Tensor, dataset: Tensor | None = None) -> np.ndarray:
        """Normalised [B, horizon, A] to robot units, float32. ``dataset``: the batch's, which a mixture needs."""

    def by_action(self, errors: np.ndarray) -> np.ndarray:
        """Absolute errors of normalised actions [..., W] by the dataset's action dimensions [..., A].

        For policies whose normalised actions have dimensions of their own; the same for all others.
        """
        return errors


def count_parameters(groups: dict[str, list[tuple[str, nn.Parameter]]]) -> Iterator[tuple[str, int, int]]:
    """Yield (group, parameters, trainable parameters), each parameter counted once."""
    seen: set[int] = set()
    for name, members in groups.items():
        fresh = [p for _, p in members if id(p) not in seen]
        seen.update(id(p) for p in fresh)
        yield name, sum(p.numel() for p in fresh), sum(p.numel() for p in fresh if p.requires_grad)
