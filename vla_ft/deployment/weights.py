"""The weights of a checkpoint as a user of the policy wants them: the average where there is one, adapters merged.

Names and shapes are those of the model without adapters, whatever engine and options trained it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vla_ft.checkpoints import AVERAGE, CONFIGURATION, DESCRIPTION, WEIGHTS
from vla_ft.config import RunConfig, run_config_from_dict
from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError
from vla_ft.policies.base import Model
from vla_ft.policies.registry import load_policy
from vla_ft.tensor_stream import Entry, TensorReader

BASE = ".base_layer."
"""Between a layer's name and ``weight`` or ``bias`` where peft has put adapters beside it."""
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
Which = Literal["average", "last"]


def read_facts(checkpoint: Path) -> tuple[RunConfig, DatasetDescription]:
    """The configuration that a checkpoint was trained with, and what its data was."""
    config = run_config_from_dict(json.loads((checkpoint / CONFIGURATION).read_text()))
    return config, DatasetDescription.from_json(json.loads((checkpoint / DESCRIPTION).read_text()))


class TrainedWeights:
    """The tensors of a checkpoint by the names of the plain model, read one at a time."""

    def __init__(self, checkpoint: Path, model: Model, config: RunConfig, which: Which = "average") -> None:
        """``model`` gives the names of the parts; it may be on the meta device. Raises UserError."""
        self._stack = ExitStack()
        self._last = self._stack.enter_context(TensorReader(checkpoint, WEIGHTS))
        self._average: TensorReader | None = None
        if which == "average" and TensorReader.exists(checkpoint, AVERAGE):
            self._average = self._stack.enter_context(TensorReader(checkpoint, AVERAGE))
        self._scales = _scales(model, config)
        _refuse_unmerged(checkpoint, self._last.entries)
        self._sources = {name.replace(BASE, "."): name for name in self._last.entries if not _is_adapter(name)}

    @property
    def entries(self) -> list[Entry]:
        """What there is, under the plain names. A merged weight is float32: its base's type may be too coarse."""
        found = [(plain, self._reader(full).entries[full], full) for plain, full in self._sources.items()]
        return [Entry(plain, e.shape, torch.float32 if _is_base(full) else e.dtype) for plain, e, full in found]

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, adapters merged into it: W + alpha / rank * B A, in float32 (Hu et al., 2021)."""
        full = self._sources[name]
        value = self._tensor(full)
        if not _is_base(full):
            return value
        layer = full.removesuffix(f"{BASE}weight")
        down, up = self._tensor(layer + DOWN).float(), self._tensor(layer + UP).float()
        return torch.addmm(value.float(), up, down, alpha=self._scales[name])

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._sources:
            yield name, self.read(name)

    def _tensor(self, full: str) -> Tensor:
        return self._reader(full).tensor(full)

    def _reader(self, full: str) -> TensorReader:
        # The average is of what was trained; the rest is the model's own.
        return self._average if self._average is not None and full in self._average else self._last

    def __enter__(self) -> TrainedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@torch.no_grad()
def load_trained(model: Model, checkpoint: Path, config: RunConfig, which: Which = "average") -> None:
    """Copy a checkpoint's weights into a plain model, strictly and one tensor at a time. Raises UserError."""
    targets: dict[str, Tensor] = {**dict(model.named_parameters()), **_persistent_buffers(model)}
    with TrainedWeights(checkpoint, model, config, which) as weights:
        names = {entry.name for entry in weights.entries}
        if names != targets.keys():
            raise UserError(f"{checkpoint} does not fit its model: {', '.join(sorted(names ^ targets.keys())[:4])}.")
        for name, value in weights:
            targets[name].copy_(value)


def build_plain(config: RunConfig, description: DatasetDescription, device: str = "cpu") -> Model:
    """The model of a configuration without adapters; on ``meta`` it has names and shapes alone."""
    with torch.device(device):
        return load_policy(config.policy).build_model(config.model, description)


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def _is_base(name: str) -> bool:
    return name.endswith(f"{BASE}weight")


def _is_adapter(name: str) -> bool:
    return name.endswith((DOWN, UP))


def _scales(model: Model, config: RunConfig) -> dict[str, float]:
    """alpha / rank by the name of a weight, for the parts that have adapters."""
    groups = model.parameter_groups()
    scales = {part: 1.0 if lora.alpha is None else lora.alpha / lora.rank for part, lora in config.lora.items()}
    return {name: scale for part, scale in scales.items() for name, _ in groups[part]}


def _refuse_unmerged(checkpoint: Path, names: Iterable[str]) -> None:
    """Raise UserError for an adapter whose layer's own weight is not there: merging would leave it out in silence."""
    known = set(names)
    lost = [n for n in known if n.endswith(DOWN) and n.removesuffix(DOWN) + f"{BASE}weight" not in known]
    if lost:
        shown = ", ".join(sorted(lost)[:4])
        raise UserError(
            f"{checkpoint} holds adapters of layers whose weights are shared with another layer: {shown}. They cannot "
            "be merged: leave these layers out with lora.<part>.layers when training."
        )
