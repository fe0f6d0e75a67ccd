"""Computing the activations of every block again. Names of parameters stay.

It replaces a block's ``forward`` and leaves its hooks alone, so that sharding, which works by hooks, stays outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from vla_ft.policies.base import Model


def recompute_activations(model: Model) -> None:
    """Keep only the inputs of each block and compute the rest again in the backward pass (Chen et al., 2016).

    Dropout draws the same masks again, so that losses and gradients are those without it.
    """
    for block in model.blocks():
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=True, **options)

    return run
