"""One training step at full size without memory: the run's own code under fake tensors, every allocation counted.

Model, freezing, precision, forward, backward, clipping, optimizer and average are those of ``vla_ft.training``: a
forecast cannot drift from what is run. Tensors have shapes and storages and no data (torch's FakeTensorMode).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
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
from vla_ft.planning.allocation import CUDA_GRANULE, AllocationLog, Events, Kind, Phase
from vla_ft.planning.card_rules import CardRules
from vla_ft.planning.workspaces import card_workspace, cpu_workspace
from vla_ft.planning.imagined import collate_one, plain_statistics, widen
from vla_ft.policies.base import Batch, Model
from vla_ft.policies.registry import load_policy
from vla_ft.training.assembly import Run
from vla_ft.training.engines import Engine
from vla_ft.training.optimizers import Ema, build_optimizer, freeze_parts
from vla_ft.training.state import TrainingState
from vla_ft.training.update import update

Compute = Literal["fp32", "autocast", "bf16"]
"""How a forward pass sees the weights: in float32, in float32 under bfloat16 autocast, or as bfloat16."""


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
    seconds: float

    @property
    def parameters(self) -> tuple[int, int]:
        """(trained, frozen) numbers in the weights."""
        trained = sum(weight.count for weight in self.weights if weight.trained)
        return trained, sum(weight.count for weight in self.weights) - trained


def rehearse(
    config: RunConfig, description: DatasetDescription, *, compute: Compute, card: bool, model: Model | None = None
) -> Trace:
    """Trace one step of ``config`` on one process with its batch per device.

    ``card`` follows the kernels and the autocast list of a CUDA card and its allocator's granule, else this CPU's.
    ``model`` is built by the policy's package unless a test brings its own. Raises what the policy itself raises.
    """
    started = time.perf_counter()
    sample = collate_one(config, description)
    config = _traceable(config, compute)
    log = AllocationLog(CUDA_GRANULE, card_workspace) if card else AllocationLog(workspace=cpu_workspace)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model = _prepared(config, description, compute, model)
        weights = tuple(_weights(model))
        # On a card the batches wait on the host and each is copied over when its turn comes.
        batches = [widen(sample, config.batch.per_device) for _ in range(config.batch.accumulation)] if card else None
        stack.enter_context(log)
        weight_bytes = log.claim(model.parameters(), Kind.STATE)
        buffer_bytes = log.claim(model.buffers(), Kind.STATE)
        ema = Ema(model, config.ema) if config.ema else None
        average_bytes = log.claim(ema.state().values(), Kind.STATE) if ema else 0
        optimizer = build_optimizer(model, config.optimizer)
        if batches is None:
            batches = [widen(sample, config.batch.per_device) for _ in range(config.batch.accumulation)]
        if card:
            stack.enter_context(CardRules())
        for remove in _mark(model, optimizer, log, weights):
            stack.callback(remove)
        log.record()
        run = _imagined_run(config, description, model, optimizer, ema)
        update(run, model, iter(batches), _Rehearsing(log, card), stop=False)
        states = [value for entries in optimizer.state.values() for value in entries.values() if _is_tensor(value)]
        births = log.births(states)
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
        seconds=time.perf_counter() - started,
    )


class _Rehearsing(Engine):
    """One process whose numbers are made up: what the trainer decides by must not be fake."""

    def __init__(self, log: AllocationLog, copies: bool) -> None:
        super().__init__(torch.device("cpu"))
        self._log, self._copies = log, copies

    @contextlib.contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
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


def _traceable(config: RunConfig, compute: Compute) -> RunConfig:
    """More than two micro-batches hold no more than two."""
    accumulation = min(2, config.batch.accumulation)
    return dataclasses.replace(
        config,
        batch=dataclasses.replace(config.batch, accumulation=accumulation),
        precision="fp32" if compute == "fp32" else "bf16",
    )


def _prepared(config: RunConfig, description: DatasetDescription, compute: Compute, model: Model | None) -> Model:
    built = model or load_policy(config.policy).build_model(config.model, description)
    freeze_parts(built, config.freeze)
    for parameter in built.parameters():
        if compute == "bf16" or (not parameter.requires_grad and config.frozen_dtype == "bf16"):
            parameter.data = parameter.data.to(torch.bfloat16)
    return built


def _weights(model: Model) -> Iterator[Weight]:
    units = {id(p): number for number, block in enumerate(model.blocks()) for p in block.parameters()}
    parts = {id(p): part for part, members in model.parameter_groups().items() for _, p in members}
    for name, p in model.named_parameters():
        yield Weight(name, tuple(p.shape), p.requires_grad, units.get(id(p), -1), parts.get(id(p), ""))


def _mark(
    model: Model, optimizer: torch.optim.Optimizer, log: AllocationLog, weights: Sequence[Weight]
) -> Iterator[Callable[[], None]]:
    """Tell the log where the step is. Yields what removes each hook."""

    def phase(value: Phase, *_: Any) -> None:
        log.phase, log.unit = value, -1

    yield model.register_forward_hook(lambda *_: phase(Phase.BACKWARD)).remove
    yield optimizer.register_step_pre_hook(partial(phase, Phase.STEP)).remove
    yield optimizer.register_step_post_hook(partial(phase, Phase.AVERAGE)).remove
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


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0  # the step counter is a number, on the host


def _without_births(events: Events, births: Sequence[tuple[int, int]]) -> None:
    """Take the optimizer's state, which this first step makes, out of the temporaries."""
    made = np.zeros(len(events.phase), np.int64)
    for event, size in births:
        made[event:] += size
    events.held[:, Kind.TEMPORARY] -= made


def _imagined_run(
    config: RunConfig,
    description: DatasetDescription,
    model: Model,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
) -> Run:
    """What ``update`` reads of a run; it has no data."""
    statistics = plain_statistics(description)
    state = TrainingState(config, description, statistics, model, optimizer, ema)
    nothing: Any = None
    return Run(
        state=state,
        reader=nothing,
        processor=nothing,
        split=nothing,
        training_windows=nothing,
        validation_windows=nothing,
        data_path="",
        global_batch=config.batch.per_device,
        weights="",
    )
