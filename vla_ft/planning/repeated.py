"""Equal blocks one behind the other: a few are run, the others are counted as those were.

A step through 32 equal layers allocates the same 32 times. The first three of a chain are run, and the last; each one
between is replaced by its input, and what the second allocated is entered in the account once more. That is done only
where it is the same to the byte: the blocks have the same modules, settings and weights, each one's input is the output
of the one before and all else is the very same objects, the second and third were entered in the account alike, going
and coming back, and what lies between their entries adds up. Where the way back shows otherwise, ``UnequalBlocks``
says so, and the step is to be traced with every block.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from vla_ft.planning.allocation import ELSEWHERE, UNIT, AllocationLog, Kind, Moment, Phase
from vla_ft.planning.equal_modules import describe_module

RUN = 3
"""Blocks at the head of a chain that are run: one that starts it, and two that are compared."""


class UnequalBlocks(Exception):
    """Blocks that looked alike going forward were not alike in the backward pass."""


@dataclass(frozen=True)
class _Call:
    """How a block was called. Tensors are held weakly: the account must see them go."""

    block: Any
    spec: TreeSpec
    leaves: tuple[Any, ...]
    """Plain values, and weak references to anything else."""
    shapes: tuple[Any, ...]
    state: tuple[Any, ...]
    """Autocast and gradients, as they were."""

    @staticmethod
    def of(block: Any, arguments: Any) -> _Call:
        leaves, spec = tree_flatten(arguments)
        state = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        return _Call(
            block,
            spec,
            tuple(map(_held_weakly, leaves)),
            tuple(_look(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves),
            state,
        )

    def repeats(self, last: _Call) -> bool:
        """Whether all but the objects in hand is as it was."""
        return (self.block, self.state, self.spec, self.shapes) == (last.block, last.state, last.spec, last.shapes)

    def changed(self, last: _Call) -> list[int]:
        """Places of what is another object than last time."""
        pairs = enumerate(zip(self.leaves, last.leaves, strict=True))
        return [place for place, (one, two) in pairs if not _same(one, two)]


def _held_weakly(leaf: Any) -> Any:
    """A plain value itself, a weak reference to anything else; what allows none is equal to nothing."""
    if isinstance(leaf, (int, float, str, type(None))):
        return leaf
    try:
        return weakref.ref(leaf)
    except TypeError:
        return float("nan")


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, weakref.ref) and isinstance(two, weakref.ref):
        return one() is not None and one() is two()
    return type(one) is type(two) and bool(one == two)


def _look(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage().nbytes()
    place = tensor.storage_offset()
    return (tuple(tensor.shape), tensor.stride(), place, storage, tensor.dtype, tensor.requires_grad, tensor.is_leaf)


@dataclass
class _Chain:
    """Blocks that follow one another and are equal, as far as is known."""

    entries: list[Moment] = field(default_factory=list)
    """When each of those run at its head was called."""
    ways: list[np.ndarray] = field(default_factory=list)
    """What each allocated on its way forward, relative to its entry."""
    growth: np.ndarray | None = None
    """Bytes by kind that one block leaves behind it, once it is known."""
    back: dict[int, Moment] = field(default_factory=dict)
    """By place in the chain, when the gradient of an output came to a block at its head."""
    skipped: list[_Skipped] = field(default_factory=list)
    dropped: dict[int, np.ndarray] = field(default_factory=lambda: {place: _nothing() for place in range(RUN)})
    """By place, bytes by kind that a block left behind and that went before the first of the chain's backward passes:
    what autocast keeps until the end of the forward pass."""
    broken: bool = False
    """Something went before the forward pass was over, at a moment of which the others' is not known."""
    waiting: int = 0
    """Blocks not run whose backward pass is still to come."""


@dataclass
class _Skipped:
    parameters: list[nn.Parameter]
    differentiable: bool
    visits: int = 0
    back: Moment | None = None
    """When its output's gradient came, and when its input's had been given on."""
    after: Moment | None = None
    left: np.ndarray | None = None
    """Bytes by kind that it held until then."""
    gained: np.ndarray | None = None
    """Bytes of its weights' gradients, by kind, that were not there before."""


def _nothing() -> np.ndarray:
    return np.zeros(len(Kind), np.int64)


class _Stand(torch.autograd.Function):
    """A block's input for its output; on the way back, its gradient for the other's."""

    @staticmethod
    def forward(ctx: Any, came: Callable[[], None], x: Tensor) -> Tensor:
        ctx.came = came
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        ctx.came()
        return None, gradients[0]


class EqualBlocks:
    """Runs ``blocks`` of ``model`` in a step that ``log`` follows, as few of them as show what all allocate."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], log: AllocationLog) -> None:
        self._log, self._blocks = log, blocks
        names = {id(module): name for name, module in model.named_modules()}
        self._looks = [describe_module(block, names[id(block)]) for block in blocks]
        self._chains: list[_Chain] = []
        self._chain = _Chain()
        self._last: _Call | None = None
        self._output: Callable[[], Any] = lambda: None
        self._left = -1
        """Events when the last block returned: none may follow before the next is called."""
        self._where: int | None = None
        """Place of the input that is the output of the block before."""

    @contextlib.contextmanager
    def standing_in(self) -> Iterator[None]:
        """Inside, blocks decide by themselves whether they are run. Raises UnequalBlocks at the end."""
        found = [(block, vars(block).get("forward")) for block in self._blocks]
        for number, block in enumerate(self._blocks):
            block.forward = self._instead(number, block.forward)
        try:
            yield
        finally:
            for block, own in found:
                if own is None:
                    del block.forward
                else:
                    block.forward = own
        for chain in self._chains:
            _count_backward(chain, self._log)

    def _instead(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            # Inside a region that is computed again, or outside the forward pass, blocks are what they are.
            if self._log.phase != Phase.FORWARD or torch._C._autograd._top_saved_tensors_default_hooks(True):
                self._last = None
                return forward(*arguments, **options)
            place = self._enter(number, arguments, options)
            if place >= RUN and self._known() and self._goes_on(number):
                return self._skip(number, arguments, options)
            result = forward(*arguments, **options)
            self._leave(place, result)
            return result

        return run

    def _enter(self, number: int, arguments: Any, options: Any) -> int:
        """Write a call down. Returns its place in the chain that it belongs to."""
        call, last = _Call.of(self._looks[number], (arguments, options)), self._last
        if last is None or not self._follows(call, last):
            self._chain, self._where = _Chain(), None
            self._chains.append(self._chain)
        self._last = call
        self._chain.entries.append(self._log.moment())
        return len(self._chain.entries) - 1

    def _follows(self, call: _Call, last: _Call) -> bool:
        if self._log.moment().event != self._left or not call.repeats(last):
            return False
        changed = call.changed(last)
        output = self._output()
        if len(changed) != 1 or output is None or call.leaves[changed[0]]() is not output:
            return False
        if self._where not in (None, changed[0]):
            return False
        self._where = changed[0]
        return True

    def _known(self) -> bool:
        """Whether the second and the third block of the chain went forward alike."""
        chain = self._chain
        if chain.growth is None and len(chain.entries) == RUN + 1:
            one, two, three = (chain.entries[place].held for place in (1, 2, 3))
            # Without gradients nothing is to stay: there is no backward pass in which it could go.
            stays = bool((two - one).any()) and not self._differentiable()
            dropped = chain.dropped[1].any() or chain.dropped[2].any()
            if np.array_equal(two - one, three - two) and _alike(*chain.ways[1:RUN]) and not stays and not dropped:
                chain.growth = two - one
        return chain.growth is not None

    def _differentiable(self) -> bool:
        output = self._output()
        return torch.is_grad_enabled() and output is not None and output.requires_grad

    def _goes_on(self, number: int) -> bool:
        """Whether another equal block comes next: the last of a chain gets its gradient from elsewhere, and is run."""
        return number + 1 < len(self._looks) and self._looks[number] == self._looks[number + 1]

    def _leave(self, place: int, result: Any) -> None:
        chain, log = self._chain, self._log
        self._left = log.moment().event
        self._output = lambda: None
        if not isinstance(result, Tensor):
            self._last = None
            return
        self._output = weakref.ref(result)
        if place >= RUN:
            return
        chain.ways.append(log.since(chain.entries[place]))
        log.tell(chain.entries[place], result, functools.partial(self._given_back, chain, place))
        if result.requires_grad:
            unit = log.unit
            result.register_hook(lambda _: chain.back.__setitem__(place, log.moment(unit)))

    def _given_back(self, chain: _Chain, place: int, kind: Kind, size: int) -> None:
        """What the second block lets go of, those that stand for it let go of too."""
        if place in chain.back:
            return
        chain.dropped[place][kind] += size
        if chain.waiting and self._log.phase == Phase.FORWARD:
            chain.broken = True
        if place == 1 and chain.waiting:
            gone = _nothing()
            gone[kind] = size * chain.waiting
            self._log.shift(-gone)

    def _skip(self, number: int, arguments: Any, options: Any) -> Any:
        chain, log = self._chain, self._log
        assert chain.growth is not None and self._where is not None
        (x,) = itertools.islice(tree_flatten((arguments, options))[0], self._where, self._where + 1)
        differentiable = torch.is_grad_enabled() and x.requires_grad
        trained = [parameter for parameter in self._blocks[number].parameters() if parameter.requires_grad]
        skipped = _Skipped(trained, differentiable)
        chain.skipped.append(skipped)
        chain.waiting += differentiable
        log.again(chain.ways[1])
        log.shift(chain.growth)
        self._left = log.moment().event
        result = _Stand.apply(lambda: self._came_back(chain, skipped, number), x) if differentiable else x.detach()
        self._output = weakref.ref(result)
        return result

    def _came_back(self, chain: _Chain, skipped: _Skipped, number: int) -> None:
        log = self._log
        skipped.visits += 1
        skipped.back = log.moment()
        assert chain.growth is not None
        chain.waiting -= 1
        skipped.left = chain.growth - chain.dropped[1]
        log.shift(-skipped.left)
        before = log.moment().held
        with log.unseen():
            for parameter in skipped.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                log.claim([parameter.grad], Kind.GRADIENT, log.unit)
        skipped.after = log.moment()
        skipped.gained = skipped.after.held - before


def _count_backward(chain: _Chain, log: AllocationLog) -> None:
    """Enter the backward passes of blocks that were not run, as the third and second of their chain were."""
    passed = [skipped for skipped in chain.skipped if skipped.differentiable]
    if not passed:
        return
    if chain.broken or any(skipped.visits != 1 for skipped in passed) or len(chain.back) != RUN:
        raise UnequalBlocks("the backward pass does not visit each block once")
    first, second, third = (chain.back[place] for place in range(RUN))
    way, other = log.between(third, second), log.between(second, first)
    change = second.held - third.held
    arrivals = [*(skipped.back for skipped in reversed(passed[:-1])), third]
    for skipped, arrival in zip(reversed(passed), arrivals, strict=True):
        assert skipped.after is not None and arrival is not None
        if skipped.after.event != arrival.event or not np.array_equal(skipped.after.held, arrival.held):
            raise UnequalBlocks("something happens between the backward passes of two blocks")
    for skipped in passed:
        assert skipped.gained is not None and skipped.left is not None
        if not np.array_equal(change, skipped.gained - skipped.left):
            raise UnequalBlocks("gradients are not those of the weights, or something is kept")
    if not np.array_equal(chain.dropped[1], chain.dropped[2]):
        raise UnequalBlocks("two equal blocks let go of different things before their backward passes")
    if not (_alike(way, other) and np.array_equal(change, first.held - second.held)):
        raise UnequalBlocks("two equal blocks went back in different ways")
    for skipped in reversed(passed):
        assert skipped.back is not None
        log.insert(skipped.back, way)


def _alike(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two ways are the same, and no event on them lies in another block."""
    return np.array_equal(one, two) and not (one[:, UNIT] == ELSEWHERE).any()
