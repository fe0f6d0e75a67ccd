"""What a checkpoint of a run holds, to disk and back: weights, optimizer, average, position, generators.

Files hold full tensors by parameter name, whatever engine cut them: any engine continues any engine's checkpoint, on
any number of processes. Writing gathers one tensor at a time to the main process; reading needs no communication.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_ft.checkpoints import AVERAGE, CONFIGURATION, DESCRIPTION, STATISTICS, WEIGHTS, write_json
from vla_ft.config import RunConfig
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.tensor_stream import Entry, TensorReader
from vla_ft.training.averages import Ema
from vla_ft.training.checkpointing import CheckpointStore, disk_errors
from vla_ft.training.engines import Engine
from vla_ft.training.gathering import gathered, write_on_main
from vla_ft.training.optimizer_files import load_optimizer, save_optimizer
from vla_ft.training.randomness import random_state, restore_random_state

_TRAINER = "trainer.json"


@dataclass
class TrainingState:
    """Everything that changes during a run but the weights and the optimizer, which the engine holds, and the facts
    that must travel with the weights."""

    config: RunConfig
    description: DatasetDescription
    statistics: DatasetStatistics
    ema: Ema | None
    left_out: dict[str, Tensor] = field(default_factory=dict)
    """Weights of frozen parts that the model does without because their features are cached, by full name. Checkpoints
    hold them. The main process has them on the CPU, the others hold their shapes (device ``meta``)."""
    damaged: list[int] = field(default_factory=list)
    """Numbers of the episodes that are left out as damaged."""
    step: int = 0
    """Updates done."""
    position: int = 0
    """Samples consumed by all processes together: the place in the (seed, epoch, index) order."""


def save_checkpoint(store: CheckpointStore, state: TrainingState, engine: Engine) -> None:
    """Write a checkpoint of the current state. Collective. Raises UserError on a full or read-only disk."""
    what = f"Checkpoint of step {state.step}"

    def prepare() -> None:
        if engine.is_main:
            _write_facts(store.prepare(state.step), state, engine)

    def write_own() -> None:
        write_json(store.incoming(state.step) / _random_file(engine.rank), random_state(engine.device))

    def commit() -> None:
        if engine.is_main:
            store.commit(state.step, {"policy": state.config.policy})

    folder = store.incoming(state.step)
    parts = (
        prepare,
        lambda: save_weights(folder, engine, state.left_out),
        lambda: save_optimizer(folder, engine),
        lambda: save_average(folder, state.ema, engine),
        write_own,
        commit,
    )
    for part in parts:
        error = None
        try:
            with disk_errors(what, store.folder, store.sweep if engine.is_main else lambda: None):
                part()
        except UserError as mistake:
            error = str(mistake)
        try:
            engine.agree(error)
        except UserError:
            if engine.is_main:  # also when the disk failed another process
                store.sweep()
            raise


def _write_facts(folder: Path, state: TrainingState, engine: Engine) -> None:
    write_json(folder / _TRAINER, {
        "step": state.step, "position": state.position, "world_size": engine.world_size, "engine": engine.name,
        "device": engine.device.type, "damaged": state.damaged,
    })  # fmt: skip
    write_json(folder / CONFIGURATION, state.config.to_dict())
    write_json(folder / DESCRIPTION, state.description.to_json())
    state.statistics.save(folder / STATISTICS)


def save_weights(folder: Path, engine: Engine, left_out: Mapping[str, Tensor]) -> None:
    """Write every parameter and persistent buffer, and those that the model does without. Collective."""
    items = [gathered(engine, name, weight) for name, weight in engine.weights.items()]
    for name, buffer in {**saved_buffers(engine.model), **left_out}.items():
        items.append((Entry(name, tuple(buffer.shape), buffer.dtype), partial(torch.Tensor.detach, buffer)))
    # By name: neither the engine nor what is left out may show in the bytes.
    write_on_main(folder, WEIGHTS, sorted(items, key=lambda item: item[0].name), engine)


def save_average(folder: Path, ema: Ema | None, engine: Engine) -> None:
    """Write the average of the trained weights, if there is one. Collective."""
    if ema is None:
        return
    items = [gathered(engine, name, average) for name, average in ema.average.items()]
    write_on_main(folder, AVERAGE, items, engine)


def load_checkpoint(path: Path, state: TrainingState, engine: Engine) -> tuple[dict[str, Any], list[str]]:
    """Restore everything but the generators in place from a verified checkpoint. Collective.

    Returns this process's generators for ``restore_generators`` (nothing when the number of processes changed), and
    what could not be restored to the bit, in words.
    """
    load_weights(path, engine, state.left_out)
    notes = load_optimizer(path, engine)
    if state.ema is not None:
        with TensorReader(path, AVERAGE) as reader:
            for name, average in state.ema.average.items():
                _copy_range(reader, name, average, engine)
    trainer = json.loads((path / _TRAINER).read_text())
    state.step, state.position = trainer["step"], trainer["position"]
    if trainer["world_size"] != engine.world_size:
        return {}, notes
    return json.loads((path / _random_file(engine.rank)).read_text()), notes


def load_weights(path: Path, engine: Engine, left_out: Mapping[str, Tensor]) -> None:
    """Read this process's elements of every parameter, and every persistent buffer, from a checkpoint. Collective."""
    buffers = saved_buffers(engine.model)
    with TensorReader(path, WEIGHTS) as reader:
        expected = engine.weights.keys() | buffers.keys() | left_out.keys()
        if reader.entries.keys() != expected:
            different = sorted(reader.entries.keys() ^ expected)
            raise UserError(f"{path} holds the weights of another model: {', '.join(different[:4])} differ.")
        engine.settle()
        with torch.no_grad():
            for name, weight in engine.weights.items():
                _copy_range(reader, name, weight, engine)
            for name, buffer in buffers.items():
                buffer.copy_(reader.tensor(name))
        engine.settle()


@torch.no_grad()
def _copy_range(reader: TensorReader, name: str, target: Tensor, engine: Engine) -> None:
    target.copy_(reader.range(name, *engine.pieces[name].mine).view(target.shape))


def saved_buffers(model: torch.nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to a checkpoint, by name."""
    persistent = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def restore_generators(saved: dict[str, Any], device: torch.device) -> None:
    """Put the generators back, or leave the fresh ones when the number of processes changed (the banner says so)."""
    if saved:
        restore_random_state(saved, device)


def _random_file(rank: int) -> str:
    return f"random_rank{rank:03d}.json"
