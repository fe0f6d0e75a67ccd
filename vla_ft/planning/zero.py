"""DeepSpeed's ZeRO: flat weights, float32 masters in shares, buckets that gradients go through.

Sizes are those that the engine sets (``vla_ft.training.engines.zero_settings``), read off DeepSpeed 0.19.8
(``stage_1_and_2.py``, ``stage3.py``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_ft.planning.allocation import Kind, Phase
from vla_ft.planning.overlay import Moments, plain
from vla_ft.planning.rehearsal import Trace
from vla_ft.planning.states import Bytes
from vla_ft.training.compatibility import Setup
from vla_ft.training.engines.zero_settings import REDUCE_BUCKET, SUB_GROUP, bucket, state_bytes

BUCKET_BYTES = 8.0
"""Of an element in the bucket while it is averaged: filled and flattened in the compute type, and in bfloat16 a float32
copy on its way (``allreduce_bucket``)."""
ADAM_LOOP = 8
"""Bytes an element that torch's loop over tensors holds: the root of the second moment and its quotient."""


def overlay_zero(trace: Trace, setup: Setup, held: Bytes) -> Moments:
    """Weights, masters and moments by stage; the bucket while gradients flow; what the step holds of a flat master."""
    stage = int(setup.engine[-1])
    trained, frozen = trace.parameters
    kinds = state_bytes(stage, setup.world_size, setup.precision, setup.offload, trained, frozen)
    base = plain(trace, setup, held, Kind.GRADIENT)
    step = base.phase == Phase.STEP
    largest = max((weight.count for weight in trace.weights if weight.trained), default=0)
    flowing = base.phase == Phase.BACKWARD
    if stage == 1:  # whole gradients wait for the end of the backward pass and then go through the bucket
        flowing = flowing | (base.phase == Phase.UPDATE)
    buffers = np.where(flowing, BUCKET_BYTES * bucket(REDUCE_BUCKET, trained, largest), 0.0)
    if stage == 3:
        buffers = buffers + np.where(step, 0.0, kinds["gathered"])
    gradients = _gradients(stage, base, kinds["gradients"], setup, trained)
    temporaries = np.where(step, kinds["step"] + _stepped(trace, setup, stage), base.temporaries)
    found = replace(base, gradients=gradients, buffers=buffers, temporaries=temporaries)
    return _offloaded(found, setup) if setup.offload != "none" else found


def _gradients(stage: int, base: Moments, whole: float, setup: Setup, trained: int) -> np.ndarray:
    """Bytes of gradients at each moment; ``whole`` at the end of the backward pass."""
    if stage == 3:  # one flat buffer from the start on
        return np.full(len(base.phase), whole)
    first = int(np.argmax(base.phase == Phase.BACKWARD))
    if stage == 2:  # this process's share, from the first bucket that is averaged on
        found = np.where(np.arange(len(base.phase)) >= first, whole, 0.0)
        # In float32 the sum over earlier micro-batches lies beside the share of the one in hand.
        again = setup.accumulation > 1 and setup.precision == "fp32"
        return found * np.where(again & (base.phase == Phase.BACKWARD), 2.0, 1.0)
    # Whole ones until the step lets go of what other processes step.
    share = trained / setup.world_size * (2 if setup.precision == "bf16" else 4)
    return np.select([base.phase == Phase.UPDATE, base.phase == Phase.STEP], [whole, share], base.gradients)


def _stepped(trace: Trace, setup: Setup, stage: int) -> float:
    """What torch's AdamW holds while it steps a flat master; each part of the model, in stage 3 sub-group, has one."""
    kernel = ("fused" if trace.card else "loop") if setup.kernel == "auto" else setup.kernel
    if kernel == "fused" or setup.offload != "none":
        return 0.0
    parts: dict[str, int] = {}
    for weight in trace.weights:
        parts[weight.part] = parts.get(weight.part, 0) + weight.count * weight.trained
    share = max(parts.values(), default=0) / setup.world_size
    return ADAM_LOOP * (min(share, SUB_GROUP) if stage == 3 else share)


def _offloaded(found: Moments, setup: Setup) -> Moments:
    """Masters and moments wait on the host and the step runs there; with ``all`` the shares of stage 3 as well."""
    columns = dict(vars(found))
    columns["optimizer"] = np.zeros_like(found.optimizer)
    columns["average"] = np.zeros_like(found.average)
    if setup.offload == "all":
        columns["weights"] = np.zeros_like(found.weights)
    return Moments(**columns)
