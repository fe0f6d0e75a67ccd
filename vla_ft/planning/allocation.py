"""Every allocation of a traced step by kind and place: an account of storages, without any memory behind them.

Under fake tensors an operation yields shapes, strides and storages as the real one does, and autograd keeps what it
would keep. A storage is counted when it first appears and given back when Python and autograd have let go of it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vla_ft.planning.known_operations import KnownOperations

ELSEWHERE = 1
"""In events relative to a moment: another block than the one in hand at that moment, which is 0."""
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


UNIT = len(Kind) + 1
"""Column of an event that says which block was in hand; before it the phase, behind it gradients of that block and of
what belongs to no block."""


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


@dataclass(frozen=True)
class Moment:
    """Where the account stood. Arrays int64."""

    event: int
    """How many events were recorded."""
    held: np.ndarray
    """[kinds], bytes."""
    unit: int
    unit_gradients: int
    root_gradients: int


@dataclass
class _Held:
    bytes: int
    kind: Kind
    born: int
    unit: int
    reference: weakref.ref[Any]
    told: Callable[[Kind, int], None] | None = None
    """Called with its kind and bytes when it is given back."""


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
    _inserted: list[tuple[int, np.ndarray]] = field(default_factory=list)
    _recording: bool = False
    _operations: KnownOperations = field(default_factory=KnownOperations)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "prim":  # a question about a tensor, such as its device
            return function(*arguments, **(keywords or {}))
        result = self._operations(function, arguments, keywords or {})
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
        return [(self._with_inserted(held.born), held.bytes) for held in found.values() if held is not None]

    def events(self) -> Events:
        """What was recorded, with what was inserted."""
        parts, last = [], 0
        rows = self._array(0, len(self._rows))
        for place, more in sorted(self._inserted, key=lambda entry: entry[0]):
            parts += [rows[last:place], more]
            last = place
        rows = np.concatenate([*parts, rows[last:]])
        kinds = len(Kind)
        return Events(rows[:, :kinds], *(rows[:, kinds + column] for column in range(4)))

    # --- what was counted once and is counted again ------------------------------------------------------------------

    def moment(self, unit: int | None = None) -> Moment:
        """Where the account stands, with the block in hand or another one."""
        unit = self.unit if unit is None else unit
        own = self._gradients.get(unit, 0) if unit >= 0 else 0
        return Moment(len(self._rows), np.array(self._sums, np.int64), unit, own, self._gradients.get(-1, 0))

    def between(self, first: Moment, last: Moment) -> np.ndarray:
        """Events from one moment to another, relative to the first: columns as recorded; the unit 0 where it is the
        first moment's, -1 outside of it, 1 anywhere else."""
        rows = self._array(first.event, last.event)
        rows[:, : len(Kind)] -= first.held
        outside, inside = rows[:, UNIT] == -1, rows[:, UNIT] == first.unit
        rows[:, UNIT] = np.select([outside, inside], [-1, 0], ELSEWHERE)
        rows[:, UNIT + 1] -= np.where(inside & ~outside, first.unit_gradients, 0)
        rows[:, UNIT + 2] -= first.root_gradients
        return rows

    def since(self, first: Moment) -> np.ndarray:
        """The same, up to now."""
        return self.between(first, self.moment())

    def again(self, way: np.ndarray) -> None:
        """Record events that ``between`` gave, from where the account stands."""
        self._rows += map(tuple, _placed(way, self.moment()).tolist())

    def insert(self, at: Moment, way: np.ndarray) -> None:
        """Put events that ``between`` gave behind an earlier moment. Those recorded since keep their values."""
        self._inserted.append((at.event, _placed(way, at)))

    def shift(self, held: np.ndarray) -> None:
        """Add bytes by kind that no storage stands for."""
        self._sums = [one + int(more) for one, more in zip(self._sums, held, strict=True)]

    def tell(self, since: Moment, apart: Tensor, told: Callable[[Kind, int], None]) -> None:
        """Have ``told`` called when a storage that was made since a moment is given back; not for that of ``apart``."""
        for key, held in self._alive.items():
            if held.born >= since.event and key != _key(apart):
                held.told = told

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Inside, storages are counted and no event is recorded."""
        recording, self._recording = self._recording, False
        yield
        self._recording = recording

    def _array(self, first: int, last: int) -> np.ndarray:
        return np.array(self._rows[first:last], dtype=np.int64).reshape(-1, len(Kind) + 4)

    def _with_inserted(self, event: int) -> int:
        return event + sum(len(more) for place, more in self._inserted if place <= event)

    # --- storages ----------------------------------------------------------------------------------------------------

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
                if held.told is not None:
                    held.told(held.kind, held.bytes)

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


def _placed(way: np.ndarray, at: Moment) -> np.ndarray:
    """Relative events as they are from a moment on."""
    rows, inside = way.copy(), way[:, UNIT] == 0
    rows[:, : len(Kind)] += at.held
    rows[:, UNIT] = np.where(inside, at.unit, -1)
    rows[:, UNIT + 1] += np.where(inside, at.unit_gradients, 0)
    rows[:, UNIT + 2] += at.root_gradients
    return rows


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
