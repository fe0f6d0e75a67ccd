"""What DeepSpeed is told, and what its ZeRO stages hold: sizes that the engines set and the planner counts with.

Every size is said here. DeepSpeed's own defaults (buckets of 500 million elements) are made for cards of 80 GiB.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from vla_ft.config import RunConfig

REDUCE_BUCKET = 50_000_000
"""Elements of gradients that are averaged together, at most."""
ALLGATHER_BUCKET = 50_000_000
"""Elements of updated weights that stages 1 and 2 collect together, at most."""
PREFETCH_BUCKET = 50_000_000
"""Stage 3: elements of weights that are collected ahead of their use, at most."""
MAX_LIVE = 300_000_000
"""Stage 3: whole weights that may be there at a time; a block larger than this comes alone."""
REUSE_DISTANCE = 100_000_000
"""Stage 3: weights needed again within so many elements are kept, such as the last block's for its backward pass."""
SUB_GROUP = 100_000_000
"""Stage 3: elements that are stepped together; their gradients exist twice meanwhile."""
PERSISTENT = 10_000
"""Stage 3: weights up to this size (norms, biases) stay whole on every device."""


def bucket(limit: int, trained: int, largest: int) -> int:
    """A bucket for ``trained`` elements: a quarter of a small model, so that averaging begins before the backward pass
    has ended, but with room for its ``largest`` weight. An even number, as DeepSpeed demands."""
    return 2 * math.ceil(min(limit, max(trained / 4, largest)) / 2)


def persistent(trained: int) -> int:
    """The size up to which weights stay whole: never more than a thousandth of what is trained."""
    return min(PERSISTENT, trained // 1000)


def deepspeed_settings(config: RunConfig, stage: int, sizes: Sequence[int], pin: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for ``config``; ``sizes`` are the elements of each weight that is trained.

    Clipping is not DeepSpeed's: the trainer must see the norm before weights change. Gradients are averaged in float32
    and, but for stage 1 in bfloat16 without offload, summed over micro-batches in float32 too.
    """
    trained, largest = sum(sizes), max(sizes)
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket(REDUCE_BUCKET, trained, largest),
        "allgather_bucket_size": bucket(ALLGATHER_BUCKET, trained, largest),
        "stage3_prefetch_bucket_size": PREFETCH_BUCKET,
        "stage3_max_live_parameters": MAX_LIVE,
        "stage3_max_reuse_distance": REUSE_DISTANCE,
        "stage3_param_persistence_threshold": persistent(trained),
        "sub_group_size": SUB_GROUP,
        "memory_efficient_linear": False,  # it would replace torch's linear layer for the whole process
        "compute_grad_norm": stage == 3 or config.offload != "none",  # where DeepSpeed can do without
    }
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    low = config.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": config.batch.per_device,
        "gradient_accumulation_steps": config.batch.accumulation,
        "gradient_clipping": 0.0,  # it is 1.0 when not said
        "steps_per_print": sys.maxsize,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW compiles nothing and resumes to the bit
        "communication_data_type": "fp32",
        "bf16": {"enabled": low, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32" if sums_in_float32(config, stage) else "bf16"},
    }


def sums_in_float32(config: RunConfig, stage: int) -> bool:
    """Whether gradients of micro-batches are summed in float32. Stage 1 of DeepSpeed would leave ZeRO for another
    optimizer if it was asked to in bfloat16 without offload."""
    return config.precision != "bf16" or stage != 1 or config.offload != "none"


def state_bytes(stage: int, world: int, precision: str, offload: str, trained: int, frozen: int) -> dict[str, float]:
    """Bytes that one process holds on its device for a model of ``trained`` and ``frozen`` elements, by kind, without
    activations; read off DeepSpeed 0.19's source. What is offloaded is not in it: see ``host_bytes``.

    ``weights`` are the model's own, ``masters`` the float32 ones that are stepped (a second copy even in float32),
    ``gradients`` at the end of the backward pass, ``buckets`` for averaging, ``gathered`` stage 3's whole weights and
    ``step`` what the update holds for a moment.
    """
    each = 2 if precision == "bf16" else 4
    share = trained / world
    held = offload == "none"
    kinds = {
        "weights": float(each * (trained + frozen)),
        "masters": 4 * share if held else 0.0,
        "optimizer": 8 * share if held else 0.0,
        "buckets": 8.0 * bucket(REDUCE_BUCKET, trained, 0),  # filled, and a float32 copy on its way
        "gathered": 0.0,
    }
    if stage == 3:
        return kinds | {
            "weights": 0.0 if offload == "all" else each * (trained + frozen) / world,
            "gradients": 4 * share if held else 0.0,
            "gathered": float(each * min(MAX_LIVE + PREFETCH_BUCKET, trained + frozen)),
            "step": 4 * min(share, SUB_GROUP) if held else 0.0,
        }
    if stage == 1:
        # Whole gradients until the last one is there.
        return kinds | {"gradients": each * (trained + (share if held else 0)), "step": 4 * share if held else 0.0}
    low = precision == "bf16"  # summed in a flat float32 share, which is stepped from where it is
    return kinds | {
        "gradients": 4 * share if held or low else 0.0,
        "step": 4 * share if held and not low else 0.0,
    }


def host_bytes(stage: int, world: int, precision: str, offload: str, trained: int, frozen: int) -> float:
    """Bytes of host memory per process that offloading takes: masters, state and gradients, with ``all`` weights."""
    if offload == "none":
        return 0.0
    each = 2 if precision == "bf16" else 4
    share = trained / world
    stepped = (4 + 8 + 4) * share
    if stage == 3:
        # Gradients are summed in one buffer and stepped from another.
        return stepped + 4 * share + (each * (share + frozen / world) if offload == "all" else 0.0)
    # The rounded weights on their way back, and in float32 the gradients of earlier micro-batches.
    return stepped + each * share + (4 * share if precision == "fp32" else 0.0)
