"""From a step of one process to the peak of each process under an engine: what that engine adds, divides and moves.

A traced step says what is computed with at each moment; an engine decides which weights, gradients and buffers lie on
the card then. Rules follow the engines' sources (torch 2.13 ``_fully_shard``, DeepSpeed 0.19.8) and are held against
the allocator in ``tests/planning``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from vla_ft.planning.allocation import Kind, Phase
from vla_ft.planning.rehearsal import Trace
from vla_ft.planning.states import GIB, Bytes, states_of
from vla_ft.training.compatibility import SHARDED, ZERO, Setup


@dataclass(frozen=True)
class Peak:
    """The fullest moment of a process, bytes by kind. ``buffers`` are what the engine itself needs: gathered weights,
    reduce buffers, buckets."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    temporaries: float
    buffers: float
    phase: str

    @property
    def total(self) -> float:
        """Allocated bytes, all kinds."""
        return sum(value for value in asdict(self).values() if not isinstance(value, str))

    def __str__(self) -> str:
        parts = (f"{name} {value / GIB:.2f}" for name, value in asdict(self).items() if not isinstance(value, str))
        return f"{self.total / GIB:.2f} GiB in {self.phase} ({', '.join(parts)})"


@dataclass(frozen=True)
class Moments:
    """A step as an engine sees it: float64 arrays of one length, bytes at each moment."""

    phase: np.ndarray
    weights: np.ndarray
    gradients: np.ndarray
    optimizer: np.ndarray
    average: np.ndarray
    activations: np.ndarray
    temporaries: np.ndarray
    buffers: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Allocated bytes at each moment."""
        return (
            self.weights + self.gradients + self.optimizer + self.average
            + self.activations + self.temporaries + self.buffers
        )  # fmt: skip

    def peak(self) -> Peak:
        """The fullest of them."""
        top = int(np.argmax(self.total))
        values = {name: float(array[top]) for name, array in vars(self).items() if name != "phase"}
        return Peak(**values, phase=Phase(int(self.phase[top])).name.lower())


def moments(trace: Trace, setup: Setup, *, ema: bool) -> Moments:
    """The step of ``trace`` on the fullest process of ``setup``. The trace's way of computing must be the engine's."""
    from vla_ft.planning.fully_sharded import overlay_fully_sharded
    from vla_ft.planning.zero import overlay_zero

    held = states_of(trace.weights, setup, ema=ema)
    if setup.engine in SHARDED:
        return overlay_fully_sharded(trace, setup, held)
    if setup.engine in ZERO:
        return overlay_zero(trace, setup, held)
    return _whole(trace, setup, held)


def _whole(trace: Trace, setup: Setup, held: Bytes) -> Moments:
    """Everything on every process; DDP's buckets hold a second copy of all gradients (``gradient_as_bucket_view`` is
    off, so that ``grad`` and bucket are two tensors)."""
    found = plain(trace, setup, held, Kind.GRADIENT)
    if setup.engine != "ddp":
        return found
    return replace(found, buffers=found.buffers + held.gradients)


def plain(trace: Trace, setup: Setup, held: Bytes, gradients: Kind | None) -> Moments:
    """Moments of one process, with the step of the optimizer as a last one made by rule."""
    events = trace.events
    keep = (events.phase != Phase.STEP) & (events.phase != Phase.AVERAGE)
    rows = events.held[keep].astype(np.float64)
    count = len(rows) + 1
    grads = rows[:, gradients] if gradients is not None else np.zeros(len(rows))
    step = step_temporaries(trace, setup)
    return Moments(
        phase=np.append(events.phase[keep], Phase.STEP),
        weights=np.full(count, float(trace.buffer_bytes + held.weights)),
        gradients=np.append(grads, held.gradients),
        optimizer=np.full(count, held.optimizer),
        average=np.full(count, held.average),
        activations=np.append(rows[:, Kind.ACTIVATION], rows[-1, Kind.ACTIVATION]),
        temporaries=np.append(rows[:, Kind.TEMPORARY] + rows[:, Kind.COPY], step),
        buffers=np.zeros(count),
    )


def step_temporaries(trace: Trace, setup: Setup) -> float:
    """Bytes that the optimizer's step holds besides the states, for weights that are whole on this process.

    AdamW's are traced (``foreach`` holds copies of all trained weights, ``loop`` of a few, ``fused`` none). With
    weights in bfloat16 one tensor at a time is stepped in float32 (``vla_ft.training.rounding``).
    """
    largest = max((weight.count for weight in trace.weights if weight.trained), default=0)
    if setup.optimizer == "adamw8bit":
        through = EIGHT_BIT_THROUGH_FLOAT if setup.precision in ROUNDING_BYTES else 0
        return largest * (through + (0 if trace.card else EIGHT_BIT_ON_CPU))
    if setup.precision in ROUNDING_BYTES:
        return largest * ROUNDING_BYTES[setup.precision]
    rows = trace.events.held[trace.events.phase == Phase.STEP]
    return float((rows[:, Kind.TEMPORARY]).max()) if len(rows) else 0.0


ROUNDING_BYTES = {"bf16_stochastic": 18, "bf16_kahan": 16}
"""Bytes a number while one tensor is stepped: float32 gradient, weight and spread; then the random bits and the rounded
weight, or the weight cast to take it off again."""
EIGHT_BIT_THROUGH_FLOAT = 14
"""The same under 8-bit AdamW: float32 weight and gradient, random bits, rounded weight."""
EIGHT_BIT_ON_CPU = 20
"""bitsandbytes' CPU form works on whole float32 tensors (measured); its CUDA kernels hold none."""
