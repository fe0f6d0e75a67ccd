"""Builds everything a run needs from its configuration: data, processor, model, optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_ft.checkpoints import STATISTICS
from vla_ft.config import RunConfig
from vla_ft.data.augmentation import find_augmentation
from vla_ft.data.damaged import Damaged, find_damaged, without_damaged
from vla_ft.data.feature_store import CachedFeatures
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.loading import Loader, build_loader, build_validation_loader
from vla_ft.data.mixture import Dropped, MixtureReader, mixture_order, mixture_statistics, split_parts
from vla_ft.data.mock import write_mock
from vla_ft.data.order import BatchPlan, ShuffledOrder
from vla_ft.data.split import EpisodeSplit
from vla_ft.data.statistics import DatasetStatistics, cached_statistics, check_finite
from vla_ft.data.windows import TrainingPlaces, WindowIndex
from vla_ft.errors import UserError
from vla_ft.policies.base import Batch, Model, Processor
from vla_ft.policies.registry import load_policy
from vla_ft.training.averages import Ema
from vla_ft.training.collective import on_all, on_main
from vla_ft.training.engines import Engine
from vla_ft.training.frozen_features import Cached, cache_features
from vla_ft.training.preparation import prepare_blocks, prepare_model
from vla_ft.training.randomness import seed_everything
from vla_ft.training.state import TrainingState
from vla_ft.weights.datasets import local_dataset
from vla_ft.weights.places import resolve

MOCK = "mock"
"""``data.path`` that asks for mock demonstrations."""
FRESH = "fresh (random)"
"""Where the weights of a run come from that names none."""


@dataclass
class Run:
    """The parts of a run. ``state`` is what changes and is saved; the rest is made again from the configuration."""

    state: TrainingState
    reader: EpisodeReader
    processor: Processor
    split: EpisodeSplit
    dropped: Dropped
    damaged: Damaged
    places: TrainingPlaces
    """Where each global position lies; its length is that of an epoch."""
    training_windows: WindowIndex
    validation_windows: WindowIndex
    data_path: str
    global_batch: int
    weights: str
    features: CachedFeatures | None = None
    """What takes the place of frozen parts; ``processor`` then leaves their inputs out."""
    features_note: str = "off"


def assemble(
    config: RunConfig, engine: Engine, start: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Run:
    """Open the data, build the model with its starting weights on the engine's device, the optimizer. Collective.

    A run that continues the checkpoint ``start`` takes its weights from there: ``init`` is then not read. ``say`` gets
    lines on the progress of what takes long.
    """
    # A name that was not fetched is told before the data is read.
    published = _published(config) if start is None else None
    reader, path = _open(config, engine)
    data = config.data
    damaged = Damaged()
    if data.on_damage == "skip":  # one process looks: all must leave out the same
        whole = reader
        damaged = on_main(engine, lambda: find_damaged(whole))
        reader = without_damaged(whole, damaged)
    # One process looks for instructions; the others get what it found.
    split, dropped = on_main(
        engine,
        lambda: split_parts(
            reader, fraction=data.validation_fraction, seed=config.seed, drop_unlabeled=data.drops_unlabeled
        ),
    )
    on_main(engine, lambda: nothing_held_out(config, split))  # what a sweep cannot do without is missed here
    # One process reads the columns of the whole set; the others get its numbers, or its error.
    statistics = on_main(engine, lambda: _statistics(config, reader, split))

    processor = load_policy(config.policy).build_processor(config.model, reader.description, statistics)
    if processor.reads_episodes:
        seen = processor
        processor = on_main(engine, lambda: seen.informed(reader, split.training))
    if processor.reads_instructions:
        on_main(engine, lambda: processor.require(all_instructions(reader)))
    weights, cached = _hold_model(config, engine, reader, processor, start, published, say)
    seed_everything(config.seed, engine.rank)
    state = TrainingState(
        config=config,
        description=reader.description,
        statistics=statistics,
        ema=Ema({name: engine.weights[name] for name in engine.trained}, config.ema) if config.ema else None,
        left_out=cached.left_out,
        damaged=damaged.numbers,
    )
    places = _places(config, reader, split)
    return Run(
        state=state,
        reader=reader,
        processor=cached.processor,
        split=split,
        dropped=dropped,
        damaged=damaged,
        places=places,
        training_windows=places.index,
        validation_windows=WindowIndex(reader.lengths, split.validation),
        data_path=path,
        global_batch=config.batch.per_device * config.batch.accumulation * engine.world_size,
        weights=weights,
        features=cached.features,
        features_note=cached.note,
    )


def _hold_model(
    config: RunConfig,
    engine: Engine,
    reader: EpisodeReader,
    processor: Processor,
    start: Path | None,
    published: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> tuple[str, Cached]:
    """Build the model, take out parts whose features are cached, and hand it to the engine. Collective.

    Returns where its weights come from, in words, and what the cached parts left. ``start`` is the checkpoint that the
    run continues, ``published`` the files of weights to begin with. An engine of shards wants the values on the main
    process alone: a machine then holds one copy of the model in host memory, and the others build it without storage.
    """
    policy = load_policy(config.policy)
    seed_everything(config.seed, 0)  # the same fresh weights on every process

    def build() -> tuple[Model, str]:
        weights = FRESH if start is None else "of the checkpoint"
        with nullcontext() if engine.builds_real else torch.device("meta"):
            model = policy.build_model(config.model, reader.description)
            if published is not None and engine.builds_real:
                weights = str(policy.load_weights(model, layout=config.init.layout, **published))
            prepare_model(model, config)
        return model, weights

    model, weights = on_all(engine, build)
    cached = cache_features(config, engine, reader, model, processor, start, say)
    on_all(engine, lambda: prepare_blocks(model, config, engine.device))
    engine.wrap(model)
    engine.build_optimizer()
    engine.check()
    return engine.broadcast(weights), cached


def _published(config: RunConfig) -> dict[str, Any] | None:
    """The files that ``init`` names, as ``load_weights`` takes them; None for none. Raises UserError."""
    init = config.init
    if init.path is None:
        return None
    found = {"path": str(resolve(init.path))}
    if init.base is None:
        return found
    if not getattr(load_policy(config.policy), "COMPLETES", False):
        raise UserError(f"init.base={init.base}: policy '{config.policy}' takes whole files alone. Leave it out.")
    return {**found, "base": str(resolve(init.base))}


def training_batches(run: Run, engine: Engine) -> Iterator[Batch]:
    """This process's batches from the run's position on, endless: ``accumulation`` of them an update."""
    config = run.state.config
    plan = BatchPlan(
        per_device=config.batch.per_device,
        world=engine.world_size,
        rank=engine.rank,
        accumulation=config.batch.accumulation,
    )
    loader = build_loader(
        run.reader,
        run.split.training,
        run.processor,
        plan,
        seed=config.seed,
        places=run.places,
        augmentation=find_augmentation(config.data.augmentation, config.seed),
        start=run.state.position,
        workers=config.data.workers,
        pin_memory=engine.device.type == "cuda",
        features=run.features,
        wordings=config.seed if config.data.instructions == "vary" else None,
    )
    return iter(loader)


def held_out_loader(run: Run, engine: Engine) -> Loader | None:
    """This process's share of the held-out windows, the same at every validation; None when none are held out."""
    if not len(run.split.validation):
        return None
    return _fixed_loader(run, engine, run.split.validation, run.state.config.validation.samples)


def training_probe(run: Run, engine: Engine) -> Loader | None:
    """Fixed windows of training episodes, to measure like held-out ones; None when none are asked for."""
    count = run.state.config.validation.training_samples
    return _fixed_loader(run, engine, run.split.training, count) if count else None


def _fixed_loader(run: Run, engine: Engine, episodes: np.ndarray, windows: int) -> Loader:
    config = run.state.config
    return build_validation_loader(
        run.reader,
        episodes,
        run.processor,
        batch_size=config.batch.per_device,
        windows=windows,
        world=engine.world_size,
        rank=engine.rank,
        workers=min(1, config.data.workers),
        features=run.features,
    )


def nothing_held_out(config: RunConfig, split: EpisodeSplit) -> str | None:
    """What to say where a share of the episodes should be held out and none could be; None otherwise.

    Raises UserError in a W&B sweep: its trials would be compared by a number that none of them has.
    """
    if len(split.validation) or not config.data.validation_fraction:
        return None
    count = len(split.training)
    found = (
        f"data.validation_fraction={config.data.validation_fraction:g}, but nothing is held out: the dataset has "
        f"{count} episode{'s' if count > 1 else ''}, and one at least is left to train on. There is no val_loss. "
    )
    if "WANDB_SWEEP_ID" in os.environ:
        raise UserError(f"{found}A sweep cannot compare its trials by val_loss then: record a second episode.")
    return found + "Record more episodes, or set data.validation_fraction=0 to say that none is wanted."


def places_of(run: Run, positions: Sequence[int]) -> list[tuple[int, int]]:
    """(episode, step) of global positions in the training order."""
    return run.places.at(positions)


def all_instructions(reader: EpisodeReader) -> set[str]:
    """Every wording of every episode's instruction."""
    return {text for e in range(len(reader.lengths)) for group in reader.instruction_variants(e) for text in group}


def _places(config: RunConfig, reader: EpisodeReader, split: EpisodeSplit) -> TrainingPlaces:
    index = WindowIndex(reader.lengths, split.training, config.data.steps_per_episode, config.seed)
    if isinstance(reader, MixtureReader):
        return TrainingPlaces(index, mixture_order(reader, index, config.seed))
    return TrainingPlaces(index, ShuffledOrder(len(index), config.seed))


def _statistics(config: RunConfig, reader: EpisodeReader, split: EpisodeSplit) -> DatasetStatistics:
    """Statistics of the training episodes, kept in the run folder; held-out episodes must hold finite numbers too."""
    check_finite(reader, split.validation)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(reader, MixtureReader):
        return cached_statistics(reader, split.training, folder / STATISTICS)
    statistics = mixture_statistics(reader, split.training, folder)
    statistics.save(folder / STATISTICS)
    return statistics


def _open(config: RunConfig, engine: Engine) -> tuple[EpisodeReader, str]:
    data = config.data
    path = str(local_dataset(data.path))
    if path == MOCK:
        path = str(on_main(engine, lambda: write_mock(Path(config.output), data.mock)))
    return data.open(path), path
