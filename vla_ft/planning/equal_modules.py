"""Whether two modules are the same but for the numbers in their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, type)
_COUNTED = ("layer_idx",)
"""transformers numbers its layers by this, for the cache of generation, which training has not."""
_OWN = frozenset(vars(nn.Module())) | {"forward"}


def describe_module(module: nn.Module, name: str) -> tuple[Any, ...]:
    """Equal for two modules when all that their code can read is equal, but for numbers in weights and buffers and
    for what a module is called.

    Classes, settings, hooks' numbers, and the shapes, types and training of weights. What has no plain value is held
    against itself. A replaced ``forward`` is not looked at. ``name`` is that of the module in its model, which peft
    writes into every layer that it adapts.
    """
    return tuple(
        (below, *_one(each, f"{name}.{below}")) for below, each in module.named_modules(remove_duplicate=False)
    )


def _one(module: nn.Module, name: str) -> tuple[Any, ...]:
    weights = tuple((name, _weight(value)) for name, value in module.named_parameters(recurse=False))
    buffers = tuple((name, _weight(value)) for name, value in module.named_buffers(recurse=False))
    own = ((key, value) for key, value in vars(module).items() if key not in _OWN and key not in _COUNTED)
    settings = tuple((key, _value(value, name)) for key, value in own)
    hooks = tuple(len(value) for key, value in vars(module).items() if key.endswith("_hooks"))
    return type(module), module.training, weights, buffers, settings, hooks


def _weight(value: Tensor) -> tuple[Any, ...]:
    return tuple(value.shape), value.stride(), value.dtype, value.requires_grad, type(value)


def _value(value: Any, name: str) -> Any:
    if isinstance(value, _PLAIN):
        return (type(value), value) if value != name else _Called
    if isinstance(value, Mapping):
        return type(value), tuple((_value(key, name), _value(each, name)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_value(each, name) for each in value)
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(_value(each, name) for each in value)
    return _Same(value)


class _Called:
    """Stands for a module's own name."""


class _Same:
    """Equal to itself alone. Holds its object, so that no other can come to the same address."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
