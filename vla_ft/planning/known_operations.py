"""What an operation yields, known from the first time that it was called with arguments of the same look.

Fake tensors have a memory of their own, whose keys and answers take most of the time of a trace. This one is asked
before it, and answers for plain operations alone: new tensors, or views of the first argument, nothing in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

_MISSING: Any = object()
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_UNFORESEEN = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True)
class _Look:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int | None
    """Of a view of the first argument, in its storage; None for a tensor of its own."""


class KnownOperations:
    """Calls operations under one fake mode, or answers as they did before."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[type, tuple[_Look | None, ...]] | None] = {}
        self._refused: dict[Any, bool] = {}

    def __call__(self, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The result of the operation: fake tensors."""
        if self._refuses(function):
            return function(*arguments, **keywords)
        seen: list[FakeTensor] = []
        key = _key((arguments, tuple(keywords.items())), seen)
        if key is None or not seen:
            return function(*arguments, **keywords)
        known = self._known.get((function, key), _MISSING)
        if known is _MISSING:
            result = function(*arguments, **keywords)
            self._known[function, key] = _looks(result, seen, function.is_view)
            return result
        if known is None:
            return function(*arguments, **keywords)
        kind, looks = known
        made = [None if look is None else _made(look, seen[0]) for look in looks]
        return made[0] if kind is FakeTensor else kind(made)

    def _refuses(self, function: Any) -> bool:
        if function not in self._refused:
            schema = getattr(function, "_schema", None)
            self._refused[function] = (
                schema is None
                or function.namespace != "aten"
                or schema.is_mutable
                or (_aliases(schema) and not (function.is_view and schema.arguments[0].alias_info is not None))
                or any(tag in function.tags for tag in _UNFORESEEN)
            )
        return self._refused[function]


def _key(value: Any, seen: list[FakeTensor]) -> Any:
    """What the result can depend on, or None where this is not for certain. Adds the tensors found to ``seen``."""
    if type(value) is FakeTensor:
        if value.constant is not None or value.layout != torch.strided or value.dtype.is_complex:
            return None
        seen.append(value)
        return FakeTensor, value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device
    if type(value) in _PLAIN:
        return type(value), value
    if type(value) in (tuple, list):
        parts = []
        for each in value:
            part = _key(each, seen)
            if part is None:
                return None
            parts.append(part)
        return type(value), *parts
    return None


def _aliases(schema: Any) -> bool:
    return any(argument.alias_info is not None for argument in (*schema.arguments, *schema.returns))


def _looks(result: Any, seen: list[FakeTensor], view: bool) -> tuple[type, tuple[_Look | None, ...]] | None:
    """How to make the result again; None where it is more than new tensors that fill their storages, or ``view``s of
    the first argument's."""
    if type(result) not in (FakeTensor, tuple, list):
        return None
    every = result if type(result) in (tuple, list) else (result,)
    storages = {tensor.untyped_storage()._cdata for tensor in seen}
    looks: list[_Look | None] = []
    for each in every:
        if each is None:
            looks.append(None)
        elif not _is_plain(each) or not (_is_view_of(seen[0], each) if view else _is_new(each, storages)):
            return None
        else:
            offset = each.storage_offset() if view else None
            looks.append(_Look(tuple(each.shape), each.stride(), each.dtype, each.fake_device, offset))
    return type(result), tuple(looks)


def _is_plain(value: Any) -> bool:
    return (
        type(value) is FakeTensor and value.constant is None and not value.dtype.is_complex and not value.requires_grad
    )


def _is_view_of(source: FakeTensor, value: FakeTensor) -> bool:
    return value.untyped_storage()._cdata == source.untyped_storage()._cdata


def _is_new(value: FakeTensor, storages: set[int]) -> bool:
    """Whether it has a storage of its own size that none of ``storages`` is. Adds it to them."""
    storage = value.untyped_storage()
    last = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    bytes_needed = (last + 1) * value.element_size() if value.numel() else 0
    fresh = storage._cdata not in storages and value.storage_offset() == 0 and storage.nbytes() == bytes_needed
    storages.add(storage._cdata)
    return fresh


def _made(look: _Look, source: FakeTensor) -> Tensor:
    mode = source.fake_mode
    with in_kernel_invocation_manager(mode):
        empty = torch.empty_strided(look.shape, look.stride, dtype=look.dtype, device="meta")
        if look.offset is not None:
            empty.set_(source.untyped_storage(), look.offset, look.shape, look.stride)
    return FakeTensor(mode, empty, look.device)
