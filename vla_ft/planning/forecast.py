"""The forecast of one setup: its fullest moment on a card, what to leave free, host memory and checkpoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vla_ft.config import RunConfig
from vla_ft.data.sample import DatasetDescription
from vla_ft.planning.cached_parts import Caching
from vla_ft.planning.cards import Target
from vla_ft.planning.host import HostMemory, checkpoint_bytes, host_memory
from vla_ft.planning.margin import Item, margin
from vla_ft.planning.overlay import Moments, Peak, moments
from vla_ft.planning.rehearsal import Build, Compute, Trace, rehearse
from vla_ft.planning.states import GIB, Bytes, explain, states_of
from vla_ft.training.compatibility import SHARDED, ZERO, Setup

BARELY = 0.98
"""Of a card's nominal memory: torch finds 1 to 2 % less of it, which the driver keeps (23.7 of a 3090's 24 GiB)."""


@dataclass(frozen=True)
class Forecast:
    """What a setup holds, and whether a card has room for it."""

    setup: Setup
    peak: Peak
    states: Bytes
    margin: tuple[Item, ...]
    host: HostMemory
    checkpoint_bytes: float
    parameters: tuple[int, int]
    """Trained and frozen."""
    activation_checkpointing: bool
    per_device: int
    caching: Caching | None = None
    """What making the cache of frozen parts holds before the first step."""

    @property
    def allocated(self) -> float:
        """The most that torch's allocator gives out: in a step, or before, while frozen parts are run for the cache."""
        return max(self.peak.total, self.caching.peak if self.caching else 0)

    @property
    def needed(self) -> float:
        """Allocated bytes and the margin."""
        return self.allocated + sum(item.bytes for item in self.margin)

    def fits(self, target: Target) -> bool:
        """Whether a card of ``target`` has that much, and its host what is offloaded."""
        return self.needed <= target.memory_gib * GIB and self.fits_host(target)

    def fits_host(self, target: Target) -> bool:
        """Whether the machine holds what is offloaded; without offload, or with an unknown machine, not judged."""
        if self.setup.offload == "none" or target.host_gib is None:
            return True
        return self.host.peak <= target.host_gib * GIB

    def sentence(self, target: Target) -> str:
        """What is needed where, and why the batch cannot help when it cannot."""
        allocated, whole = self.peak.total / GIB, self.needed / GIB
        verdict = "does not fit"
        if self.fits(target):
            verdict = "barely fits" if self.needed > BARELY * target.memory_gib * GIB else "fits"
        text = (
            f"{verdict}: {allocated:.2f} GiB allocated at its fullest (in {self.peak.phase}), {whole:.2f} with the "
            f"margin, on {target.name} with {target.memory_gib:.1f} GiB"
        )
        if not self.fits_host(target):
            return f"{text}. Offloading needs {self.host.peak / GIB:.1f} GiB of host memory of {target.host_gib:.1f}"
        why = explain(self.states, target.memory_gib, self.setup.world_size, self.parameters)
        return f"{text}. {why}" if why else text

    def caching_sentence(self) -> str:
        """What making the cache takes, or nothing where nothing is cached."""
        if self.caching is None:
            return ""
        made = self.caching
        return (
            f"Features of {', '.join(made.parts)} are cached: making them, once and before the first step, takes "
            f"{made.peak / GIB:.2f} GiB on a card (the part alone, forward, {self.per_device} samples) and "
            f"{made.row_bytes / 2**20:.3f} MiB of disk for each frame or sample; training then runs without its "
            f"{made.numbers:,} weights"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain types; bytes."""
        return {
            "setup": dataclasses.asdict(self.setup),
            "peak": {**dataclasses.asdict(self.peak), "total": self.peak.total},
            "states": dataclasses.asdict(self.states),
            "margin": [dataclasses.asdict(item) for item in self.margin],
            "needed": self.needed,
            "host": {**dataclasses.asdict(self.host), "peak": self.host.peak},
            "checkpoint_bytes": self.checkpoint_bytes,
            "parameters": {"trained": self.parameters[0], "frozen": self.parameters[1]},
            "activation_checkpointing": self.activation_checkpointing,
            "per_device": self.per_device,
            "caching": dataclasses.asdict(self.caching) if self.caching else None,
        }


def compute_of(setup: Setup) -> Compute:
    """How the forward pass of an engine sees the weights."""
    if setup.precision == "fp32":
        return "fp32"
    cast = setup.engine in (*SHARDED, *ZERO) or setup.precision != "bf16"
    return "bf16" if cast else "autocast"


class Planner:
    """Forecasts for one run's model and data. Steps that were traced once are not traced again.

    ``card``: follow a card's kernels, or this CPU's. ``build`` makes the model in place of the policy's package.
    """

    def __init__(
        self,
        description: DatasetDescription,
        *,
        card: bool = True,
        build: Build | None = None,
        local: int | None = None,
    ) -> None:
        self.description, self.card, self.local = description, card, local
        self._build = build
        self._traces: dict[tuple[Any, ...], Trace] = {}

    @property
    def traced(self) -> int:
        """How many steps have been traced."""
        return len(self._traces)

    def trace(self, config: RunConfig, setup: Setup) -> Trace:
        """The step of ``config`` as the engine of ``setup`` computes it."""
        compute = compute_of(setup)
        frozen_dtype = "fp32" if compute == "fp32" else config.frozen_dtype
        key = (
            compute, frozen_dtype, config.activation_checkpointing, config.batch.per_device,
            min(2, config.batch.accumulation), config.optimizer.kernel, config.freeze, repr(config.lora),
            repr(config.model), repr(config.frozen_features),
            config.ema is not None, config.optimizer.clip_grad_norm is None,
        )  # fmt: skip
        if key not in self._traces:
            self._traces[key] = rehearse(config, self.description, compute=compute, card=self.card, build=self._build)
        return self._traces[key]

    def moments(self, config: RunConfig, setup: Setup) -> Moments:
        """The step, moment by moment, on the fullest process."""
        return moments(self.trace(config, setup), setup, ema=config.ema is not None)

    def forecast(self, config: RunConfig, setup: Setup) -> Forecast:
        """The forecast of ``config`` as ``setup`` has it."""
        trace, ema = self.trace(config, setup), config.ema is not None
        peak = self.moments(config, setup).peak()
        batch_bytes = config.batch.per_device * trace.sample_bytes
        local = min(setup.world_size, self.local or setup.world_size)
        return Forecast(
            setup=setup,
            peak=peak,
            states=states_of(trace.weights, setup, ema=ema),
            margin=margin(setup, max(peak.total, trace.caching.peak if trace.caching else 0)) if self.card else (),
            host=host_memory(
                trace, setup, ema=ema, local=local, workers=config.data.workers, batch_bytes=batch_bytes, card=self.card
            ),
            checkpoint_bytes=checkpoint_bytes(trace, setup, ema=ema),
            parameters=trace.parameters,
            activation_checkpointing=config.activation_checkpointing,
            per_device=config.batch.per_device,
            caching=trace.caching,
        )
