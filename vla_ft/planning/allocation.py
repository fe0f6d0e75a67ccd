"""Every allocation of a traced step by kind and place: an account of storages, without any memory behind them.

Under fake tensors an operation yields shapes, strides and storages as the real one does, and autograd keeps what it
would keep. A storage is counted when it first appears and given back when Python and autograd have let go of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CUDA_GRANULE = 512
"""torch's CUDA allocator hands out, and counts, multiples of this many bytes."""


class Kind(IntEnum):
    """What an allocation is for."""

    STATE = 0
    """Weights, buffers and the average: there before the step and after it."""
    GRADIENT = 1
    ACTIVATION = 2
    """Made by the forward pass, the batch included."""
    COPY = 3
    """Weights in another type, as autocast makes them."""
    TEMPORARY = 4
    """Made after the forward pass and not kept."""


class Phase(IntEnum):
    """Where in a step an event lies."""

    FORWARD = 0
    BACKWARD = 1
    UPDATE = 2
    """Clipping and what surrounds the step."""
    STEP = 3
    AVERAGE = 4


@dataclass
class Events:
    """What was held at each allocation of a step, in order. Arrays of one length E.

    ``held``: int64 [E, kinds], bytes. ``phase`` and ``unit``: int64 [E]; unit -1 is outside the blocks.
    ``unit_gradients``: int64 [E], gradients that the unit in hand holds, ``root_gradients`` those outside the blocks.
    """

    held: np.ndarray
    phase: np.ndarray
    unit: np.ndarray
    unit_gradients: np.ndarray
    root_gradients: np.ndarray


@dataclass
class _Held:
    bytes: int
    kind: Kind
    born: int
    unit: int
    reference: weakref.ref[Any]


@dataclass
class AllocationLog(TorchDispatchMode):
    """Counts storages while it is active; ``phase`` and ``unit`` are set from outside as the step goes on."""

    granule: int = 1
    workspace: Callable[[Any, tuple[Any, ...], Any], int] | None = None
    """What a kernel holds for itself while it runs, from the operation, its arguments and its result."""
    phase: Phase = Phase.FORWARD
    unit: int = -1
    _alive: dict[int, _Held] = field(default_factory=dict)
    _sums: list[int] = field(default_factory=lambda: [0] * len(Kind))
    _gradients: dict[int, int] = field(default_factory=dict)
    _rows: list[tuple[int, ...]] = field(default_factory=list)
    _recording: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        before = len(self._alive)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, function, arguments)
        extra = self.workspace(function, arguments, result) if self.workspace and self._recording else 0
        if self._recording and (extra or len(self._alive) > before):
            self._record(extra)
        return result

    def record(self) -> None:
        """Keep events from now on."""
        self._recording = True
        self._record()

    def claim(self, tensors: Iterable[Tensor], kind: Kind, unit: int = -1) -> int:
        """Say what tensors are for; those not seen yet are counted now. Returns their bytes."""
        total = 0
        for tensor in tensors:
            held = self._alive.get(_key(tensor)) or self._add(tensor, kind)
            if held.kind != kind or held.unit != unit:
                self._move(held, -1)
                held.kind, held.unit = kind, unit
                self._move(held, 1)
            total += held.bytes
        return total

    def births(self, tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
        """(event, bytes) of each distinct storage among ``tensors``: the event before which it was made."""
        found = {_key(tensor): self._alive.get(_key(tensor)) for tensor in tensors}
        return [(held.born, held.bytes) for held in found.values() if held is not None]

    def events(self) -> Events:
        """What was recorded."""
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, len(Kind) + 4)
        kinds = len(Kind)
        return Events(rows[:, :kinds], *(rows[:, kinds + column] for column in range(4)))

    def _see(self, tensor: Tensor, function: Any, arguments: tuple[Any, ...]) -> None:
        if _key(tensor) in self._alive:
            return
        if self.phase == Phase.FORWARD:
            source = arguments[0] if arguments else None
            copied = function is torch.ops.aten._to_copy.default and self._is_state(source)
            kind = Kind.COPY if copied else Kind.ACTIVATION
        else:
            kind = Kind.TEMPORARY
        self._add(tensor, kind)

    def _is_state(self, tensor: Any) -> bool:
        held = self._alive.get(_key(tensor)) if isinstance(tensor, Tensor) else None
        return held is not None and held.kind == Kind.STATE

    def _add(self, tensor: Tensor, kind: Kind) -> _Held:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = -(-storage.nbytes() // self.granule) * self.granule
        held = _Held(size, kind, len(self._rows), -1, weakref.ref(storage, self._forget(key)))
        self._alive[key] = held
        self._move(held, 1)
        return held

    def _forget(self, key: int) -> Callable[[Any], None]:
        def gone(reference: Any) -> None:
            held = self._alive.get(key)
            if held is not None and held.reference is reference:  # not a later storage at the same address
                del self._alive[key]
                self._move(held, -1)

        return gone

    def _move(self, held: _Held, sign: int) -> None:
        self._sums[held.kind] += sign * held.bytes
        if held.kind == Kind.GRADIENT:
            self._gradients[held.unit] = self._gradients.get(held.unit, 0) + sign * held.bytes

    def _record(self, extra: int = 0) -> None:
        gradients, sums = self._gradients, list(self._sums)
        sums[Kind.TEMPORARY] += extra
        own = gradients.get(self.unit, 0) if self.unit >= 0 else 0
        self._rows.append((*sums, int(self.phase), self.unit, own, gradients.get(-1, 0)))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
