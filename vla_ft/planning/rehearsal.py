"""One training step at full size without memory: the run's own code under fake tensors, every allocation counted.

Model, freezing, precision, forward, backward, clipping, optimizer and average are those of ``vla_ft.training``: a
forecast cannot drift from what is run. Tensors have shapes and storages and no data (torch's FakeTensorMode).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_iter

from vla_ft.config import RunConfig
from vla_ft.data.sample import DatasetDescription
from vla_ft.planning.allocation import AllocationLog, Events, Kind, Phase
from vla_ft.planning.cached_parts import Caching, cacheable_parts, new_log, take_out_cached
from vla_ft.planning.card_rules import card_rules
from vla_ft.planning.imagined import imagined_run, widen
from vla_ft.planning.repeated import EqualBlocks, UnequalBlocks
from vla_ft.policies.base import Batch, Model
from vla_ft.policies.registry import load_policy
from vla_ft.training.engines import Engine
from vla_ft.training.preparation import prepare_blocks, prepare_model
from vla_ft.training.update import update

Compute = Literal["fp32", "autocast", "bf16"]
"""How a forward pass sees the weights: in float32, in float32 under bfloat16 autocast, or as bfloat16."""
Build = Callable[[], Model]
"""Makes a model; it is called under fake tensors."""


@dataclass(frozen=True)
class Weight:
    """A parameter of a model."""

    name: str
    shape: tuple[int, ...]
    trained: bool
    unit: int
    """Number of its block in ``Model.blocks()``, or -1."""
    part: str
    """Its named part."""

    @property
    def count(self) -> int:
        """Numbers in it."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Trace:
    """A step of one process that holds everything itself."""

    events: Events
    """Allocations of the step; the optimizer's state is not among them."""
    weights: tuple[Weight, ...]
    weight_bytes: int
    """Parameters as traced, and buffers."""
    buffer_bytes: int
    average_bytes: int
    optimizer_bytes: int
    batch_size: int
    compute: Compute
    card: bool
    """Whether a card's kernels were followed, or this CPU's."""
    sample_bytes: int
    """One sample as a batch brings it."""
    caching: Caching | None
    """What making the cache of frozen parts holds; None where nothing is cached."""
    cacheable: tuple[str, ...]
    """Frozen parts that are run in every step and whose features could be cached."""
    declared: tuple[str, ...]
    """Parts whose features could be cached once they were frozen."""
    seconds: float

    @property
    def parameters(self) -> tuple[int, int]:
        """(trained, frozen) numbers in the weights."""
        trained = sum(weight.count for weight in self.weights if weight.trained)
        return trained, sum(weight.count for weight in self.weights) - trained


def rehearse(
    config: RunConfig, description: DatasetDescription, *, compute: Compute, card: bool, build: Build | None = None,
    equal_once: bool = True,
) -> Trace:  # fmt: skip
    """Trace one step of ``config`` on one process with its batch per device.

    ``card`` follows the kernels and the autocast list of a CUDA card and its allocator's granule, else this CPU's.
    ``build`` makes the model in place of the policy's package. Raises what the policy itself raises.
    ``equal_once``: of equal blocks in a row run those that show what the others allocate (``planning.repeated``).
    """
    if equal_once:
        with contextlib.suppress(UnequalBlocks):
            return _rehearse(config, description, compute, card, build, equal_once=True)
    return _rehearse(config, description, compute, card, build, equal_once=False)


def _rehearse(
    config: RunConfig, description: DatasetDescription, compute: Compute, card: bool, build: Build | None,
    *, equal_once: bool,
) -> Trace:  # fmt: skip
    started = time.perf_counter()
    config = traceable(config, compute, card)
    log = new_log(card)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model = built(config, description, build)
        sample, caching = take_out_cached(model, config, description, card=card)
        declared = tuple(model.frozen_features()) if caching is None else ()
        could = cacheable_parts(model, config, description) if caching is None else ()
        finish(model, config, compute)
        engine = _Rehearsing(config, log, copies=card)
        engine.wrap(model)
        weights = tuple(_weights(model))
        # On a card the batches wait on the host and each is copied over when its turn comes.
        batches = [widen(sample, config.batch.per_device) for _ in range(config.batch.accumulation)] if card else None
        stack.enter_context(log)
        weight_bytes = log.claim(model.parameters(), Kind.STATE)
        buffer_bytes = log.claim(model.buffers(), Kind.STATE)
        run = imagined_run(config, description, engine)
        average_bytes = log.claim(run.state.ema.average.values(), Kind.STATE) if run.state.ema else 0
        if batches is None:
            batches = [widen(sample, config.batch.per_device) for _ in range(config.batch.accumulation)]
        if card:
            stack.enter_context(card_rules())
        for remove in _mark(model, engine, log, weights):
            stack.callback(remove)
        log.record()
        with EqualBlocks(model, model.blocks(), log).standing_in() if equal_once else contextlib.nullcontext():
            update(run, iter(batches), engine, stop=False)
        births = log.births(_states(engine.optimizer))
        events = log.events()
    _without_births(events, births)
    return Trace(
        events=events,
        weights=weights,
        weight_bytes=weight_bytes + buffer_bytes,
        buffer_bytes=buffer_bytes,
        average_bytes=average_bytes,
        optimizer_bytes=sum(size for _, size in births),
        batch_size=config.batch.per_device,
        compute=compute,
        card=card,
        sample_bytes=sum(value.numel() * value.element_size() for value in sample.values()),
        caching=caching,
        cacheable=could,
        declared=declared,
        seconds=time.perf_counter() - started,
    )


class _Rehearsing(Engine):
    """One process whose numbers are made up: what the trainer decides by must not be fake."""

    def __init__(self, config: RunConfig, log: AllocationLog, copies: bool) -> None:
        super().__init__(config, torch.device("cpu"))
        self._log, self._copies = log, copies

    def wrap(self, model: Model) -> None:
        self.model = self.module = model  # made where it is, and fake tensors do not move
        self._hold_whole(model)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self._log.phase, self._log.unit = Phase.FORWARD, -1
        yield
        self._log.phase, self._log.unit = Phase.UPDATE, -1

    def move(self, batch: Batch) -> Batch:
        if not self._copies:
            return batch
        return {key: value.clone() for key, value in batch.items()}

    def mean(self, values: Tensor) -> Tensor:
        with unset_fake_temporarily():
            return torch.zeros(values.shape)

    def sum(self, values: Tensor) -> Tensor:
        return self.mean(values)

    def step(self) -> None:
        if self.config.optimizer.kernel != "fused":  # that one works in place
            super().step()


def traceable(config: RunConfig, compute: Compute, card: bool) -> RunConfig:
    """The same step in the fewest words: two micro-batches hold what more do, AdamW's kernel is the device's own, and
    the engine's precision is the way it computes. What ``torch.compile`` saves is not foreseen."""
    kernel = config.optimizer.kernel
    if kernel == "auto":
        kernel = "fused" if card else "loop"
    return dataclasses.replace(
        config,
        batch=dataclasses.replace(config.batch, accumulation=min(2, config.batch.accumulation)),
        optimizer=dataclasses.replace(config.optimizer, name="adamw", kernel=kernel),
        precision="fp32" if compute == "fp32" else "bf16",
        frozen_dtype="fp32" if compute == "fp32" else config.frozen_dtype,
        compile=False,
    )


def built(config: RunConfig, description: DatasetDescription, build: Build | None = None) -> Model:
    """The run's model with its adapters, frozen parts and types."""
    with _conversions_in_place():
        model = build() if build else load_policy(config.policy).build_model(config.model, description)
        prepare_model(model, config)
    return model


def finish(model: Model, config: RunConfig, compute: Compute) -> None:
    """What follows the caching of features: blocks computed again; under ``bf16`` every weight is a bfloat16."""
    prepare_blocks(model, config, torch.device("cpu"))
    if compute == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)


@contextlib.contextmanager
def _conversions_in_place() -> Iterator[None]:
    """Let ``Module.to`` set the data of fake parameters: torch would swap them, which their weak references forbid."""

    def apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(function)
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = function(parameter.data)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
        return module

    with unittest.mock.patch.object(nn.Module, "_apply", apply):
        yield


def _states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Moments; the step counter is a number, and on the host where the kernel is not fused."""
    every = (value for entries in optimizer.state.values() for value in entries.values())
    return [value for value in every if isinstance(value, Tensor) and value.dim() > 0]


def _weights(model: Model) -> Iterator[Weight]:
    units = {id(p): number for number, block in enumerate(model.blocks()) for p in block.parameters()}
    parts = {id(p): part for part, members in model.parameter_groups().items() for _, p in members}
    for name, p in model.named_parameters():
        yield Weight(name, tuple(p.shape), p.requires_grad, units.get(id(p), -1), parts.get(id(p), ""))


def _mark(model: Model, engine: Engine, log: AllocationLog, weights: Sequence[Weight]) -> Iterator[Callable[[], None]]:
    """Tell the log where the step is. Yields what removes each hook."""

    def phase(value: Phase, *_: Any) -> None:
        log.phase, log.unit = value, -1

    yield model.register_forward_hook(lambda *_: phase(Phase.BACKWARD)).remove
    yield engine.optimizer.register_step_pre_hook(partial(phase, Phase.STEP)).remove
    yield engine.optimizer.register_step_post_hook(partial(phase, Phase.AVERAGE)).remove
    for number, block in enumerate(model.blocks()):
        yield from _mark_block(block, number, log)
    for weight, parameter in zip(weights, model.parameters(), strict=True):
        if weight.trained:
            claim = partial(_claim_gradient, log, weight.unit)
            yield parameter.register_post_accumulate_grad_hook(claim).remove


def _mark_block(block: nn.Module, number: int, log: AllocationLog) -> Iterator[Callable[[], None]]:
    """A block is in hand from its call to its return, and from its output's gradient to its inputs'."""

    def enter(*_: Any) -> None:
        log.unit = number

    def leave(*_: Any) -> None:
        if log.unit == number:
            log.unit = -1

    def called(_: nn.Module, arguments: Any, keywords: Any) -> None:
        if log.phase == Phase.FORWARD:
            for tensor in _differentiable((arguments, keywords)):
                tensor.register_hook(leave)
        enter()

    def returned(_: nn.Module, arguments: Any, keywords: Any, result: Any) -> None:
        if log.phase == Phase.FORWARD:
            leave()
            for tensor in _differentiable(result):
                tensor.register_hook(enter)

    yield block.register_forward_pre_hook(called, with_kwargs=True).remove
    yield block.register_forward_hook(returned, with_kwargs=True).remove


def _differentiable(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor) and leaf.requires_grad)


def _claim_gradient(log: AllocationLog, unit: int, parameter: Tensor) -> None:
    if parameter.grad is not None:
        log.claim([parameter.grad], Kind.GRADIENT, unit)


def _without_births(events: Events, births: Sequence[tuple[int, int]]) -> None:
    """Take the optimizer's state, which this first step makes, out of the temporaries."""
    made = np.zeros(len(events.phase), np.int64)
    for event, size in births:
        made[event:] += size
    events.held[:, Kind.TEMPORARY] -= made
