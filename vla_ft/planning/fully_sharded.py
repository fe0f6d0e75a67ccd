"""FSDP2 and HSDP: shards always, one block's weights gathered with the next on its way, gradients reduced by block."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_ft.planning.allocation import Events, Kind, Phase
from vla_ft.planning.overlay import Moments, plain, step_temporaries
from vla_ft.planning.rehearsal import Trace
from vla_ft.planning.states import Bytes, padded, rows_held
from vla_ft.training.compatibility import Setup

ROOT = -1


@dataclass(frozen=True)
class Unit:
    """A group of weights that is gathered together, bytes."""

    gathered: float
    """Whole weights in the compute type."""
    reduced: float
    """Whole gradients in the type of the reduction, float32."""
    shard: float
    """Its weights here, in the type that they are kept in."""
    gradient: float
    """Its gradients here, once reduced."""


def units_of(trace: Trace, setup: Setup) -> dict[int, Unit]:
    """By block number, and -1 for what belongs to no block."""
    compute = 4 if setup.precision == "fp32" else 2
    kept = 2 if setup.precision in ("bf16_stochastic", "bf16_kahan") else 4
    group = setup.shard_group
    found = {ROOT: Unit(0, 0, 0, 0)}
    for weight in trace.weights:
        old = found.get(weight.unit, Unit(0, 0, 0, 0))
        rows, whole = rows_held(weight, group), padded(weight, group)
        frozen = 2 if setup.frozen_dtype == "bf16" else 4
        found[weight.unit] = Unit(
            old.gathered + compute * whole,
            old.reduced + 4 * whole * weight.trained,
            old.shard + (kept if weight.trained else frozen) * rows,
            old.gradient + kept * rows * weight.trained,
        )
    return found


def overlay_fully_sharded(trace: Trace, setup: Setup, held: Bytes) -> Moments:
    """Gathered weights and reduce buffers at every moment, and a moment for every reduction.

    ``FSDPParamGroup``: in forward the result of a block's all-gather is kept until the next one has been copied out; in
    backward the next block is gathered early, and a block's reduce-scatter input lives until the following block's.
    """
    units = units_of(trace, setup)
    events = _in_step(trace.events)
    order = _order(events)
    walk = _Walk(units, order, setup, trace.card)
    rows = [walk.at(phase, unit) for phase, unit in zip(events.phase, events.unit, strict=True)]
    buffers, finished = (np.array(column) for column in zip(*rows, strict=True))
    base = plain(replace(trace, events=events), setup, held, None)
    base.temporaries[-1] = step_temporaries(trace, setup) / setup.shard_group
    gradients = events.unit_gradients + events.root_gradients
    buffers = buffers + np.where(events.phase == Phase.BACKWARD, gradients, 0)
    found = replace(
        base,
        gradients=np.append(finished, held.gradients),
        buffers=np.append(buffers, 0.0),
    )
    found = _with_reductions(found, events, walk)
    return _offloaded(found, units, setup) if setup.offload == "all" else found


class _Walk:
    """What FSDP2 holds as the step goes from block to block."""

    def __init__(self, units: dict[int, Unit], order: list[int], setup: Setup, card: bool) -> None:
        self.units, self.order, self.setup, self.card = units, order, setup, card
        self.alone = setup.shard_group == 1
        self._last = ROOT
        self._before = {unit: order[place - 1] for place, unit in enumerate(order) if place}
        self._done: list[int] = []
        rounded = setup.precision in ("bf16_stochastic", "bf16_kahan")
        # HSDP keeps what it reduced over copies until the end of the backward pass (``_all_reduce_state``): beside the
        # gradients, where it was rounded or added into them.
        self._keeps_output = setup.engine == "hsdp" and (rounded or setup.accumulation > 1)
        self._every = sum(unit.gradient for unit in units.values())
        self._kept = self._every if setup.accumulation > 1 else 0.0
        """Gradients of earlier micro-batches, reduced. The last micro-batch is the fullest: it has all of them."""

    def at(self, phase: int, unit: int) -> tuple[float, float]:
        """(buffers, reduced gradients) while ``unit`` is in hand."""
        if phase == Phase.FORWARD:
            self._last = unit if unit != ROOT else self._last
            return self._forward(unit), self._kept
        if phase == Phase.BACKWARD:
            if unit != ROOT and unit not in self._done:
                self._done.append(unit)
            return self._backward(unit), self._finished(unit)
        return 0.0, self._every

    def _forward(self, unit: int) -> float:
        whole = self.units[ROOT].gathered
        waiting = 0.0 if self.alone else self.units[self._last].gathered
        return whole + waiting + (self.units[unit].gathered if unit != ROOT else 0.0)

    def _backward(self, unit: int) -> float:
        before = self._done[:-1] if unit != ROOT else self._done
        reducing = self.units[before[-1]].reduced if before else 0.0
        own = self.units[unit].gathered if unit != ROOT else 0.0
        return self.units[ROOT].gathered + own + self._early(self._coming(unit)) + reducing + self._outputs(before)

    def _outputs(self, done: list[int]) -> float:
        if not self._keeps_output:
            return 0.0
        return sum(self.units[one].reduced for one in done) / self.setup.shard_group

    def _coming(self, unit: int) -> int:
        """The unit that is gathered early while ``unit`` is differentiated."""
        if unit == ROOT and not self._done:
            return self.order[-1] if self.order else ROOT
        return self._before.get(unit if unit != ROOT else self._done[-1], ROOT)

    def _early(self, unit: int) -> float:
        return 0.0 if unit == ROOT or self.alone else self.units[unit].gathered

    def _finished(self, unit: int) -> float:
        done = self._done[:-1] if unit != ROOT else self._done
        return self._kept or sum(self.units[one].gradient for one in done)

    def reduction(self, unit: int) -> tuple[float, float]:
        """(buffers besides whole gradients, reduced gradients) while the gradients of ``unit`` are reduced."""
        done = self._done_before(unit)
        own = self.units[unit]
        whole = self.units[ROOT].gathered if unit != ROOT else 0.0
        output = own.reduced / self.setup.shard_group
        if self.setup.precision in ("bf16_stochastic", "bf16_kahan"):
            output += own.gradient  # the reduced gradient in the type of the shard
        if not self.card:
            output += own.reduced  # gloo reduces a copy
        output += self._outputs(done)
        early = self._early(self._before.get(unit, ROOT)) if unit != ROOT else 0.0
        return whole + early + own.reduced + output, self._kept or sum(self.units[one].gradient for one in done)

    def _done_before(self, unit: int) -> list[int]:
        return self.order[self.order.index(unit) + 1 :] if unit != ROOT else self.order


def _in_step(events: Events) -> Events:
    """The events of one micro-batch and of the clipping. Each is reduced by itself, so that the whole gradients of
    earlier ones, which the traced process keeps, are not there."""
    phase = events.phase
    keep = (phase != Phase.STEP) & (phase != Phase.AVERAGE)
    backward = np.flatnonzero(phase == Phase.BACKWARD)
    again = np.flatnonzero((phase == Phase.FORWARD) & (np.arange(len(phase)) > backward[0]))
    if len(again):
        keep[again[0] : backward[-1] + 1] = False
    return Events(*(array[keep] for array in vars(events).values()))


def _order(events: Events) -> list[int]:
    """Blocks as the forward pass first meets them."""
    visited = events.unit[(events.phase == Phase.FORWARD) & (events.unit != ROOT)]
    return list(dict.fromkeys(int(unit) for unit in visited))


def _with_reductions(found: Moments, events: Events, walk: _Walk) -> Moments:
    """Add the moment at which each block's gradients, whole, lie beside the buffer that they are reduced in."""
    extra = []
    backward = np.flatnonzero(events.phase == Phase.BACKWARD)
    for unit in [*reversed(walk.order), ROOT]:
        mine = backward[events.unit[backward] == unit]
        if not len(mine):
            continue
        last = int(mine[-1])
        buffers, finished = walk.reduction(unit)
        gradients = float(events.unit_gradients[mine].max() if unit != ROOT else 0) + float(
            events.root_gradients[: last + 1].max()
        )
        kept = float(events.held[last, Kind.ACTIVATION])
        extra.append((last, buffers + gradients, finished, kept))
    if not extra:
        return found
    at = np.array([row[0] for row in extra])
    columns = {name: np.append(array, array[at]) for name, array in vars(found).items()}
    count = len(found.phase)
    columns["buffers"][count:] = [row[1] for row in extra]
    columns["gradients"][count:] = [row[2] for row in extra]
    columns["activations"][count:] = [row[3] for row in extra]
    columns["temporaries"][count:] = 0.0
    return Moments(**columns)


def _offloaded(found: Moments, units: dict[int, Unit], setup: Setup) -> Moments:
    """Shards, reduced gradients, optimizer and average wait on the host, and the step runs there. A unit's shard
    comes over, and is cast, before it is gathered."""
    keep = found.phase != Phase.STEP
    columns = {name: array[keep] for name, array in vars(found).items()}
    for name in ("weights", "gradients", "optimizer", "average"):
        columns[name] = np.zeros_like(columns[name])
    columns["buffers"] = columns["buffers"] + max(u.shard + u.gathered / setup.shard_group for u in units.values())
    return Moments(**columns)
