"""Host memory and disk: what waits beside the cards, and what a checkpoint takes."""

from __future__ import annotations

from dataclasses import dataclass

from vla_ft.planning.rehearsal import Trace
from vla_ft.planning.states import GIB, bytes_of_number, shares_of
from vla_ft.training.compatibility import SHARDED, ZERO, Setup
from vla_ft.training.engines.zero_settings import host_bytes

PROCESS = 3.0 * GIB
"""A training process with CUDA's libraries (general knowledge, not measured)."""
WORKER = 0.2 * GIB
"""A data worker. Its own memory, pages that it shares with its parent left out, was 103 and 116 MiB after eight batches
of 28 MiB (benchmarks/results/memory_forecast.json); rounded up for files that it keeps open in a longer run."""
PREFETCH = 2
"""Batches that a worker reads ahead."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes on one machine."""

    processes: float
    workers: float
    """Workers with the batches that they read ahead, and the pinned copies."""
    offloaded: float
    """Weights, gradients, optimizer and average that wait here, pinned."""
    loading: float
    """One whole copy of the weights while the run starts; it is gone before the first step."""

    @property
    def peak(self) -> float:
        """The higher of starting and training."""
        return self.processes + max(self.loading + self.offloaded, self.workers + self.offloaded)


def host_memory(
    trace: Trace, setup: Setup, *, ema: bool, local: int, workers: int, batch_bytes: float, card: bool = True
) -> HostMemory:
    """For a machine with ``local`` processes of ``workers`` data workers each; ``batch_bytes`` is one batch."""
    trained, frozen = trace.parameters
    left_out = trace.caching.weights if trace.caching else 0.0
    read_ahead = local * max(1, workers) * (PREFETCH + 1) * batch_bytes
    return HostMemory(
        processes=local * (PROCESS if card else PROCESS / 4) + left_out,
        workers=local * workers * WORKER + read_ahead,
        offloaded=local * _offloaded(trained, frozen, setup, ema) if card else 0.0,
        loading=(4.0 * (trained + frozen) + left_out) * (1 if setup.engine in SHARDED else local),
    )


def _offloaded(trained: int, frozen: int, setup: Setup, ema: bool) -> float:
    """Bytes that one process keeps on the host."""
    if setup.offload == "none":
        return 0.0
    shares = shares_of(setup)
    learned, kept = (bytes_of_number(setup, trained=one, ema=ema) for one in (True, False))
    average = learned.average * trained / shares.average
    if setup.engine in ZERO:
        stage = int(setup.engine[-1])
        return host_bytes(stage, setup.world_size, setup.precision, setup.offload, trained, frozen) + average
    return (
        (learned.weights * trained + kept.weights * frozen) / shares.weights
        + learned.gradients * trained / shares.gradients
        + learned.optimizer * trained / shares.optimizer
        + average
    )


def checkpoint_bytes(trace: Trace, setup: Setup, *, ema: bool) -> float:
    """One checkpoint on disk: weights, optimizer and average, whole, with those of parts whose features are cached."""
    trained, frozen = trace.parameters
    learned, kept = (bytes_of_number(setup, trained=one, ema=ema) for one in (True, False))
    left_out = trace.caching.weights if trace.caching else 0.0
    return (learned.weights + learned.optimizer + learned.average) * trained + kept.weights * frozen + left_out
