"""Runs frozen parts of a model once over the data, and lets training read what they gave.

A part's features are kept with a key: weights, settings, data, precision. Features of another key are refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_ft.checkpoints import WEIGHTS
from vla_ft.config import FrozenFeaturesConfig, RunConfig
from vla_ft.data.feature_store import CachedFeatures, Feature, FeatureFolder, FeatureStore, Layout
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.loading import Loader, build_scan
from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.errors import UserError
from vla_ft.policies.base import Batch, FrozenFeatures, Model, Processor
from vla_ft.policies.frozen_parts import cacheable, compute_rows, leave_out, refuse_random, replaced_inputs
from vla_ft.tensor_stream import TensorReader
from vla_ft.training.checkpointing import disk_errors
from vla_ft.training.collective import on_main
from vla_ft.training.engines import Engine
from vla_ft.training.feature_key import build_key, differences

_SAY_EVERY = 30.0
"""Seconds between two lines on progress."""


@dataclass(frozen=True)
class Cached:
    """What a run reads instead of running its frozen parts; ``features`` is None where nothing is cached."""

    features: CachedFeatures | None
    processor: Processor
    left_out: dict[str, Tensor]
    """Weights taken out of the model: on the main process's CPU, on ``meta`` elsewhere."""
    note: str


def cache_features(
    config: RunConfig,
    engine: Engine,
    reader: EpisodeReader,
    model: Model,
    processor: Processor,
    start: Path | None,
    say: Callable[[str], None],
) -> Cached:
    """Make or open the features that ``config.frozen_features`` asks for, and take their parts out of ``model``.

    Held-out episodes are covered. A run that continues takes the parts' weights from its checkpoint ``start``.
    Collective. Raises UserError for a part that cannot be cached, features of something else, damage or a full disk.
    """
    wanted = config.frozen_features
    if wanted is None:
        return Cached(None, processor, {}, "off")
    # Augmentation draws every image anew, before any processor sees it.
    drawn = [key for key in processor.keys if key.startswith(IMAGE_PREFIX)] if config.data.augmented else []
    varied = config.data.instructions == "vary"
    parts = cacheable(model, wanted.parts, (*processor.random_keys, *drawn), varied=varied)
    root = Path(wanted.path) if wanted.path is not None else Path(config.output) / "features"
    stores, notes = [], []
    for part, declared in parts.items():
        if start is not None:
            _restore(model, declared, start)
        job = _Job(config, wanted, engine, reader, model, processor, part, declared, FeatureFolder(root / part), say)
        stores.append(job.run())
        notes.append(f"{part}: {job.note}")
    inputs = replaced_inputs(model, parts)
    left_out: dict[str, Tensor] = {}
    for declared in parts.values():
        left_out |= leave_out(model, declared)
    if not engine.is_main:  # one process writes checkpoints; the others need not hold the weights
        left_out = {name: value.to("meta") for name, value in left_out.items()}
    features = CachedFeatures(stores, reader.lengths, processor.window)
    return Cached(features, processor.without(inputs), left_out, "; ".join(notes))


def _restore(model: Model, declared: FrozenFeatures, checkpoint: Path) -> None:
    """Give the part the weights that it has in a checkpoint; nothing else is read."""
    prefix = declared.module + "."
    if _without_storage(model.get_submodule(declared.module)):
        return
    with TensorReader(checkpoint, WEIGHTS) as file:
        weights = {key.removeprefix(prefix): file.tensor(key) for key in file.entries if key.startswith(prefix)}
    model.get_submodule(declared.module).load_state_dict(weights)


def _without_storage(module: nn.Module) -> bool:
    return any(value.is_meta for value in (*module.parameters(), *module.buffers()))


def spread_weights(module: nn.Module, engine: Engine) -> None:
    """Give a part that was built without storage (``meta``) the main process's values, on this process's device.

    One tensor at a time. Where every process has its values nothing is sent. Collective.
    """
    if not any(engine.gather(_without_storage(module))):
        return
    lacking = _without_storage(module)
    if lacking:
        module.to_empty(device=engine.device)
    for target in (*module.parameters(), *module.buffers()):
        value = engine.broadcast(target.detach().cpu() if engine.is_main else None)
        if lacking:
            target.data.copy_(value)


@dataclass
class _Job:
    """The features of one part: looked for, computed where they are missing, checked. Its methods are collective."""

    config: RunConfig
    wanted: FrozenFeaturesConfig
    engine: Engine
    reader: EpisodeReader
    model: Model
    processor: Processor
    part: str
    declared: FrozenFeatures
    folder: FeatureFolder
    say: Callable[[str], None]
    note: str = ""

    def run(self) -> FeatureStore:
        """The finished features."""
        with ExitStack() as stack:
            layout, finished = on_main(self.engine, lambda: self._open(stack))
            if finished:
                self._check(layout)
                self._describe("reused", layout)
            else:
                self._complete(layout)
        return FeatureStore(self.folder.folder, layout)

    def _open(self, stack: ExitStack) -> tuple[Layout, bool]:
        """Main process: layout of what lies here, begun afresh where there is nothing, and whether it is finished.

        An unfinished folder is held until ``stack`` ends.
        """
        with self._disk_errors("Cached features"):
            if not self.folder.finished():
                stack.enter_context(self.folder.sole_writer())
                self.folder.sweep()
            key = build_key(
                self.config, self.engine.device, self.reader, self.model, self.processor, self.part, self.declared,
                self.folder.folder,
            )  # fmt: skip
            begun = self.folder.begun()
            if begun is None:
                layout = self._first_layout()
                self.folder.begin(key, layout)
                return layout, False
        if other := differences(begun[0], key):
            raise UserError(
                f"The cached features in {self.folder.folder} are of something else: {'; '.join(other)}. Delete that "
                "folder to compute them again, or keep it and set frozen_features.path to another one."
            )
        return begun[1], self.folder.finished()

    def _first_layout(self) -> Layout:
        """Look at one batch: whether anything in it is random, and what a row is."""
        rows = int(self.reader.lengths.sum())
        size = self.config.batch.per_device
        first = [row % rows for row in range(size)]
        with self._on_device():
            batch = self.engine.move(next(iter(self._scan([first], workers=0))))
            with self.engine.autocast():
                refuse_random(self.model, self.part, self.declared, batch)
                values = compute_rows(self.model, self.declared, batch)
        features = {
            key: Feature(shape=tuple(value.shape[1:]), stored=self._stored(value.dtype), computed=value.dtype)
            for key, value in values.items()
        }
        return Layout.plan(rows, size, self.wanted.shard_mib * 2**20, self.declared.scope == "frame", features)

    def _complete(self, layout: Layout) -> None:
        """Compute the missing shards, each process its share, and write the manifest."""
        engine, started = self.engine, time.monotonic()
        missing = on_main(engine, lambda: self.folder.missing(layout))
        if engine.is_main:
            self.say(
                f"features of {self.part}: computing {len(missing)} of {layout.shards} shards, {layout.rows:,} rows, "
                f"{layout.bytes / 2**30:.2f} GiB, into {self.folder.folder}"
            )
        if missing:
            self._compute(missing, layout)
        own = range(engine.rank, layout.shards, engine.world_size)
        unseen = self.folder.missing(layout)
        engine.agree(
            f"{self.folder.shard(unseen[0])} was written by another process and is not here. Processes on several "
            "machines share the work: set frozen_features.path to a disk that all of them see."
            if unseen
            else None
        )
        described = engine.gather({self.folder.shard(n).name: self.folder.describe(n) for n in own})
        on_main(engine, lambda: self._finish({name: value for part in described for name, value in part.items()}))
        how = "made" if len(missing) == layout.shards else f"completed ({len(missing)} of {layout.shards} shards)"
        self._describe(f"{how} in {time.monotonic() - started:.0f} s", layout)

    def _compute(self, missing: Sequence[int], layout: Layout) -> None:
        """Run the part over the rows of missing shards, each process its share."""
        engine, said = self.engine, time.monotonic()
        started, mine = said, missing[engine.rank :: engine.world_size]
        spread_weights(self.model.get_submodule(self.declared.module), engine)
        with (
            self._on_device(),
            closing(self._scan([rows for number in mine for rows in layout.batches_of(number)])) as loader,
        ):
            batches = iter(loader)
            # A round at a time, so that a mistake of one process ends the others soon.
            for turn in range(-(-len(missing) // engine.world_size)):
                error = self._shard(mine[turn], layout, batches) if turn < len(mine) else None
                engine.agree(error)
                if engine.is_main and time.monotonic() - said > _SAY_EVERY:
                    said = time.monotonic()
                    done = min(len(missing), (turn + 1) * engine.world_size)
                    self.say(f"features of {self.part}: {done} of {len(missing)} shards, {said - started:.0f} s")

    def _finish(self, shards: dict[str, Any]) -> None:
        with self._disk_errors("The manifest of cached features"):
            self.folder.finish(dict(sorted(shards.items())))

    def _shard(self, number: int, layout: Layout, batches: Iterator[Batch]) -> str | None:
        """Compute and write one shard; returns a mistake's words."""
        try:
            parts = [self._rows(next(batches), rows) for rows in layout.batches_of(number)]
            real = len(layout.rows_of(number))
            with self._disk_errors(f"Shard {number} of cached features", number):
                self.folder.write(number, {key: torch.cat([p[key] for p in parts])[:real] for key in layout.features})
        except UserError as mistake:
            return str(mistake)
        return None

    def _disk_errors(self, what: str, shard: int | None = None) -> AbstractContextManager[None]:
        """Around writing; what an unfinished ``shard`` takes is given back."""

        def clean_up() -> None:
            if shard is not None:
                self.folder.incoming(shard).unlink(missing_ok=True)

        return disk_errors(what, self.folder.folder, clean_up, "frozen_features.path")

    def _rows(self, batch: Batch, rows: Sequence[int]) -> dict[str, Tensor]:
        """Features of one batch on the CPU as they are stored. Raises UserError when one is not finite."""
        with self.engine.autocast():
            computed = compute_rows(self.model, self.declared, self.engine.move(batch))
        stored = {key: value.to(self._stored(value.dtype)).cpu() for key, value in computed.items()}
        for key, value in stored.items():
            bad = (~torch.isfinite(value)).reshape(len(value), -1).any(1).nonzero()
            if len(bad):
                self._refuse_not_finite(key, rows[int(bad[0])])
        return stored

    def _refuse_not_finite(self, key: str, row: int) -> None:
        ends = self.reader.lengths.cumsum()
        episode = int((ends <= row).sum())
        step = row - int(ends[episode] - self.reader.lengths[episode])
        advice = (
            "float16 reaches 65,504: store them with frozen_features.dtype=bfloat16 or as computed."
            if self.wanted.dtype == "float16"
            else "Look at this episode and at the weights of the part."
        )
        raise UserError(f"{key} of {self.reader.name_of(episode)} step {step} is not finite. {advice}")

    def _check(self, layout: Layout) -> None:
        """Compare every shard with its manifest, each process its share."""
        own = range(self.engine.rank, layout.shards, self.engine.world_size)
        self.engine.agree(next(filter(None, map(self.folder.check, own)), None))

    def _describe(self, how: str, layout: Layout) -> None:
        stored = "" if self.wanted.dtype == "computed" else f", rounded to {self.wanted.dtype}"
        self.note = (
            f"{how}, {layout.rows:,} rows, {layout.bytes / 2**30:.2f} GiB{stored}, {self.folder.folder}; the part is "
            "not run"
        )

    def _stored(self, computed: torch.dtype) -> torch.dtype:
        narrow = self.wanted.dtype != "computed" and computed.is_floating_point and computed.itemsize > 2
        return getattr(torch, self.wanted.dtype) if narrow else computed

    def _scan(self, batches: Sequence[Sequence[int]], workers: int | None = None) -> Loader:
        steps = 1 if self.declared.scope == "frame" else self.processor.window.observation_steps
        count = self.config.data.workers if workers is None else workers
        return build_scan(self.reader, self.processor, batches, observation_steps=steps, workers=count)

    def _on_device(self) -> ExitStack:
        """The part on the engine's device for the length of a block."""
        module = self.model.get_submodule(self.declared.module)
        module.to(self.engine.device)
        stack = ExitStack()
        stack.callback(module.to, "cpu")
        return stack
