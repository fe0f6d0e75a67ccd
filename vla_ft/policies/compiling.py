"""``torch.compile`` for every block of a model, in training and in inference. Names of parameters stay.

It replaces a block's ``forward`` and leaves its hooks alone, so that sharding, which works by hooks, stays outside.
"""

from __future__ import annotations

import torch
from torch import nn

from vla_ft.errors import UserError
from vla_ft.policies.base import Model

_VARIANTS = 8
"""How many graphs a block may need: training and evaluation, sizes of the last batch, types under autocast."""


def compile_blocks(model: Model, device: torch.device) -> None:
    """``torch.compile`` each block, for the shapes that come. Raises UserError where this machine has no compiler."""
    require_compiler(device)
    import torch._dynamo

    blocks = model.blocks()
    # Blocks share their code, and each kind of them is a graph. Past its limit torch would run the rest uncompiled.
    limit = max(torch._dynamo.config.recompile_limit, _VARIANTS * len(blocks))
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in blocks:
        # A graph for each shape. torch would turn sizes that differ between blocks into unknowns, which costs speed
        # and, for strided convolutions, breaks its own compiler (ValueRangeError, seen with 2.13).
        block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]


def require_compiler(device: torch.device) -> None:
    """Compile something small where the model is going to run: nothing else shows that it works. Raises UserError."""
    try:
        torch.compile(_probe)(torch.ones(4, device=device))
    except Exception as error:  # the compiler's errors have no common base
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"compile=true needs a working compiler for {device.type} (a C++ compiler such as g++; on cards Triton as "
            f"well) and this environment's failed: {first}. Set compile=false, or use an environment that has one."
        ) from None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(x * 2 + 1)
