"""One correction to FSDP2 of torch 2.7: units may hold frozen weights of another type than their trained ones.

Only what is trained has gradients to reduce together, so only its types must agree. torch 2.8 and later check just
that; 2.7 checks frozen weights as well and refuses bfloat16 ones beside float32 adapters.
"""

from __future__ import annotations

from typing import Any

import torch


def admit_mixed_units() -> None:
    """Give torch 2.7 the later rule; later versions are left alone."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8):
        return
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group

    setattr(_fsdp_param_group.FSDPParamGroup, "_init_mp_dtypes", _types_of_trained)  # noqa: B010


def _types_of_trained(group: Any) -> None:
    for parameter in group.fsdp_params:
        parameter.init_dtype_attrs(group.mp_policy)
    # A unit that is all frozen reduces nothing: any of its types will do.
    trained = [p for p in group.fsdp_params if p.sharded_param.requires_grad] or group.fsdp_params[:1]
    held, reduced = {p.orig_dtype for p in trained}, {p.reduce_dtype for p in trained}
    if len(held) != 1 or len(reduced) != 1:
        raise AssertionError(f"the trained weights of one unit have types {held}, reduced as {reduced}")
    group._orig_dtype, group._reduce_dtype = held.pop(), reduced.pop()
