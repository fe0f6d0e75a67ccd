"""What a checkpoint of a run holds, to disk and back: weights, optimizer, average, position, generators."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_ft.checkpoints import AVERAGE, CONFIGURATION, DESCRIPTION, STATISTICS, WEIGHTS, write_json
from vla_ft.config import RunConfig
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.base import Model
from vla_ft.training.checkpointing import CheckpointStore, disk_errors
from vla_ft.training.engines import Engine
from vla_ft.training.optimizers import Ema
from vla_ft.training.randomness import random_state, restore_random_state

_OPTIMIZER = "optimizer.safetensors"
_GROUPS = "optimizer.json"
_TRAINER = "trainer.json"


@dataclass
class TrainingState:
    """Everything that changes during a run, and the facts that must travel with the weights."""

    config: RunConfig
    description: DatasetDescription
    statistics: DatasetStatistics
    model: Model
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    left_out: dict[str, Tensor] = field(default_factory=dict)
    """Weights of frozen parts that the model does without because their features are cached, by full name. Checkpoints
    hold them. The main process has them on the CPU, the others hold their shapes (device ``meta``)."""
    step: int = 0
    """Updates done."""
    position: int = 0
    """Samples consumed by all processes together: the place in the (seed, epoch, index) order."""


def save_checkpoint(store: CheckpointStore, state: TrainingState, engine: Engine) -> None:
    """Write a checkpoint of the current state. Collective. Raises UserError on a full or read-only disk."""
    what = f"Checkpoint of step {state.step}"

    def write_shared() -> None:
        if engine.is_main:
            _write_shared(store.prepare(state.step), state, engine)

    def write_own() -> None:
        write_json(store.incoming(state.step) / _random_file(engine.rank), random_state(engine.device))

    def commit() -> None:
        if engine.is_main:
            store.commit(state.step, {"policy": state.config.policy})

    for part in (write_shared, write_own, commit):
        error = None
        try:
            with disk_errors(what, store.folder, store.sweep if engine.is_main else lambda: None):
                part()
        except UserError as mistake:
            error = str(mistake)
        engine.agree(error)


def _write_shared(folder: Path, state: TrainingState, engine: Engine) -> None:
    _save_tensors({**state.model.state_dict(), **state.left_out}, folder / WEIGHTS)
    tensors, groups = _optimizer_to_plain(state.model, state.optimizer)
    _save_tensors(tensors, folder / _OPTIMIZER)
    write_json(folder / _GROUPS, groups)
    if state.ema is not None:
        _save_tensors(state.ema.state(), folder / AVERAGE)
    write_json(folder / _TRAINER, {"step": state.step, "position": state.position, "world_size": engine.world_size})
    write_json(folder / CONFIGURATION, state.config.to_dict())
    write_json(folder / DESCRIPTION, state.description.to_json())
    state.statistics.save(folder / STATISTICS)


def load_checkpoint(path: Path, state: TrainingState, engine: Engine) -> dict[str, Any]:
    """Restore everything but the generators in place from a verified checkpoint.

    Returns this process's generators for ``restore_generators``; nothing when the number of processes changed.
    """
    weights = load_file(path / WEIGHTS)
    state.model.load_state_dict({name: value for name, value in weights.items() if name not in state.left_out})
    groups = json.loads((path / _GROUPS).read_text())
    _optimizer_from_plain(state.model, state.optimizer, load_file(path / _OPTIMIZER), groups)
    if state.ema is not None:
        state.ema.load(load_file(path / AVERAGE))
    trainer = json.loads((path / _TRAINER).read_text())
    state.step, state.position = trainer["step"], trainer["position"]
    if trainer["world_size"] != engine.world_size:
        return {}
    return json.loads((path / _random_file(engine.rank)).read_text())


def restore_generators(saved: dict[str, Any], device: torch.device) -> None:
    """Put the generators back, or leave the fresh ones when the number of processes changed (the banner says so)."""
    if saved:
        restore_random_state(saved, device)


def _random_file(rank: int) -> str:
    return f"random_rank{rank:03d}.json"


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, path)
    except SafetensorError as error:
        # The library wraps the system's error in text; give it back its number.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from None


def _optimizer_to_plain(
    model: Model, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """State tensors by ``<parameter>/<entry>`` and the groups' settings with parameter names instead of numbers."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {
        f"{names[id(p)]}/{key}": torch.as_tensor(value)
        for p, entries in optimizer.state.items()
        for key, value in entries.items()
    }
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    return tensors, groups


def _optimizer_from_plain(
    model: Model, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    current = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    saved = [group["params"] for group in groups]
    if current != saved:
        raise UserError(
            "The optimizer of the checkpoint has other parameters than this run: freeze= or the model changed."
        )
    order = {name: number for number, name in enumerate(name for group in saved for name in group)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        state.setdefault(order[name], {})[entry] = value
    numbered = [{**group, "params": [order[name] for name in group["params"]]} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})
