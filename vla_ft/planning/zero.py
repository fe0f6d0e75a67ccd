"""DeepSpeed's ZeRO: flat weights, a float32 master copy in the optimizer's share, buckets that gradients go through.

Read off DeepSpeed 0.19.8 (``stage_1_and_2.py``, ``stage3.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_ft.planning.allocation import Kind, Phase
from vla_ft.planning.overlay import Moments, plain
from vla_ft.planning.rehearsal import Trace
from vla_ft.planning.states import Bytes
from vla_ft.training.compatibility import Setup


@dataclass(frozen=True)
class Buckets:
    """Sizes in numbers, DeepSpeed's defaults."""

    reduce: int = 500_000_000
    """A buffer of this size is allocated whole for the backward pass."""
    prefetch: int = 50_000_000
    live: int = 1_000_000_000
    """Stage 3 keeps up to so many weights gathered, as long as they are needed again soon."""
    group: int = 1_000_000_000
    """Stage 3 steps so many at once."""


BUCKETS = Buckets()


def overlay_zero(trace: Trace, setup: Setup, held: Bytes, buckets: Buckets = BUCKETS) -> Moments:
    """Weights, master copy and moments by stage; the bucket while gradients flow; float32 gradients in the step."""
    stage = int(setup.engine[-1])
    compute = 4 if setup.precision == "fp32" else 2
    trained = trace.parameters[0]
    share = trained / setup.world_size
    base = plain(trace, setup, held, Kind.GRADIENT)
    backward, update = base.phase == Phase.BACKWARD, base.phase == Phase.UPDATE
    bucket = float(buckets.reduce * compute)
    if stage == 3:
        gathered = compute * float(min(sum(trace.parameters), buckets.live + buckets.prefetch))
        buffers = np.where(base.phase == Phase.STEP, 0.0, gathered) + bucket
        gradients = np.full(len(base.phase), share * compute)
    elif stage == 2:
        # A gradient is copied into the bucket and let go; this process's own part is kept from the first bucket on.
        buffers = np.where(backward, bucket, 0.0)
        gradients = np.where(backward | update, share * compute, 0.0)
    else:
        # Whole gradients wait for the end of the backward pass and then go through the bucket.
        buffers = np.where(backward | update, bucket, 0.0)
        gradients = base.gradients + np.where(update, share * compute, 0.0)
    step = _step_bytes(stage, share, compute, buckets)
    gradients[-1], base.temporaries[-1] = share * compute, step
    found = replace(base, gradients=gradients, buffers=buffers)
    return _offloaded(found, setup, share, compute) if setup.offload != "none" else found


def _step_bytes(stage: int, share: float, compute: int, buckets: Buckets) -> float:
    """The flattened share in the compute type and again in float32; stage 3 goes group by group."""
    count = min(share, buckets.group) if stage == 3 else share
    return count * (4 if stage == 3 else compute + (4 if compute == 2 else 0))


def _offloaded(found: Moments, setup: Setup, share: float, compute: int) -> Moments:
    """Master copy and moments wait on the host and the step runs there; with ``all`` the shards of stage 3 as well."""
    columns = dict(vars(found))
    columns["optimizer"] = np.zeros_like(found.optimizer)
    columns["temporaries"] = np.where(found.phase == Phase.STEP, 0.0, found.temporaries)
    columns["gradients"] = np.where(found.phase == Phase.STEP, 0.0, found.gradients)
    if setup.offload == "all":
        columns["weights"] = np.zeros_like(found.weights)
    return Moments(**columns)
