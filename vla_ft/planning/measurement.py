"""What a real step on this CPU allocates, by the allocator's own events: the truth that forecasts are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vla_ft.config import RunConfig
from vla_ft.data.sample import DatasetDescription
from vla_ft.planning.cached_parts import take_out_cached
from vla_ft.planning.imagined import imagined_run, widen
from vla_ft.policies.base import Batch
from vla_ft.policies.registry import load_policy
from vla_ft.training.assembly import Run
from vla_ft.training.engines import Engine
from vla_ft.training.preparation import prepare_blocks, prepare_model
from vla_ft.training.update import update

if TYPE_CHECKING:
    from vla_ft.training.trainer import Losses


@dataclass(frozen=True)
class Measured:
    """Bytes. ``states`` are counted, ``rise`` is the highest running sum of the allocator's events from there on."""

    states: int
    rise: int

    @property
    def peak(self) -> int:
        """The most that was allocated at once."""
        return self.states + self.rise


def measure_step(config: RunConfig, description: DatasetDescription, engine: Engine | None = None) -> Measured:
    """Run two real updates on an imagined batch and measure the second; ``engine`` is a single CPU process by default.

    Every process of an engine must call it, and gets its own numbers.
    """
    engine = engine or Engine(config, torch.device("cpu"))
    with torch.device("cpu" if engine.builds_real else "meta"):
        model = load_policy(config.policy).build_model(config.model, description)
        prepare_model(model, config)
    sample, _ = take_out_cached(model, config, description, card=False)
    prepare_blocks(model, config, engine.device)
    engine.wrap(model)
    del model
    run = imagined_run(config, description, engine)
    batches = [widen(sample, config.batch.per_device) for _ in range(config.batch.accumulation)]

    def step() -> None:
        update(run, iter(batches), engine, stop=False)

    step()
    engine.zero_grad()
    return measure(lambda: _held(run, engine, batches), step)


class SecondUpdate:
    """Watches a run on the CPU: measures its second update, by when the optimizer has its state.

    A run of one update is not measured.
    """

    measured: int = 0
    """Bytes that the allocator had given out at the fullest moment; 0 before that update."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, run: Run, engine: Engine, step: Callable[[], Losses]) -> Losses:
        self._seen += 1
        if self._seen != 2:
            return step()
        answers: list[Losses] = []
        engine.zero_grad()  # as the update does first: what it frees must not be counted against what it takes
        self.measured = measure(lambda: _held(run, engine, []), lambda: answers.append(step())).peak
        return answers[0]


def measure(states: Callable[[], Iterable[Tensor]], step: Callable[[], Any]) -> Measured:
    """Run ``step`` under torch's profiler; ``states`` gives every tensor that is held when it begins."""
    held = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in states()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    running = highest = 0
    for change in _changes(recorded):
        running += change
        highest = max(highest, running)
    return Measured(sum(held.values()), highest)


def _held(run: Run, engine: Engine, batches: list[Batch]) -> Iterable[Tensor]:
    # Here, because it takes a second and every run imports this file for its forecast.
    from torch.distributed.tensor import DTensor

    yield from engine.weights.values()
    yield from engine.model.buffers()
    # ZeRO's are the model's own beside its masters; shards are aliased by ``weights``.
    yield from (parameter for parameter in engine.model.parameters() if not isinstance(parameter, DTensor))
    for entries in (*engine.optimizer.state.values(), *engine.optimizer_state().values()):
        yield from (value for value in entries.values() if isinstance(value, Tensor) and value.dim() > 0)
    if run.state.ema is not None:
        yield from run.state.ema.average.values()
    for batch in batches:
        yield from batch.values()


def _changes(recorded: profile) -> list[int]:
    """Bytes of each allocation (above 0) and release of CPU memory, in the order of time."""
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    ordered = sorted(events, key=lambda event: event.start_ns())
    return [event.nbytes() for event in ordered]  # type: ignore[attr-defined]
