"""Attention with soft-capped scores (Gemma 2 Team 2024, arXiv 2408.00118, §2), who may see whom, and rotary positions.

Tokens come in the order picture and prompt, proprioception, actions. Each kind sees itself and those before it, so that
what comes later never changes what came before: keys and values of a kind can be kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vla_ft.errors import UserError

_BLOCKED = -1e30
"""Score of what may not be seen, for flex_attention. Finite, so that rows that see nothing average over everything, as
they do in eager mode; nobody reads those."""


def visibility(valid: Tensor, proprio_tokens: int, action_tokens: int) -> Tensor:
    """Who may see whom, bool [B, N, N] (row sees column), from ``valid`` bool [B, S], False where the prompt is padded.

    Padding sees nothing and is seen by nobody.
    """
    batch, prefix = valid.shape
    total = prefix + proprio_tokens + action_tokens
    later = valid.new_ones(batch, proprio_tokens + action_tokens)
    columns = torch.cat((valid, later), dim=1)
    kinds = torch.zeros(total, dtype=torch.int64, device=valid.device)
    kinds[prefix:] += 1
    kinds[prefix + proprio_tokens :] += 1
    ordered = kinds[:, None] >= kinds[None, :]
    return ordered & columns[:, :, None] & columns[:, None, :]


def rotation(count: int, first: int, theta: float, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines float32 [count, width] of rotary positions ``first``, ``first + 1``, ... (Su et al. 2021)."""
    inverse = theta ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.arange(first, first + count, dtype=torch.float32, device=device)[:, None] * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the halves of each head of ``x`` [B, heads, T, width] against each other; the type stays."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines.to(x.dtype) + torch.cat((-second, first), dim=-1) * sines.to(x.dtype)


def eager_attention(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, cap: float) -> Tensor:
    """Attention [B, H, T, W] of ``query`` [B, H, T, W] over ``keys`` and ``values`` [B, K, S, W].

    K divides H: neighbouring query heads share a key head. ``allowed`` bool [B, T, S]. Scores are
    ``cap tanh(q k / sqrt(W) / cap)``; the softmax of half-precision scores runs in float32.
    """
    batch, heads, count, width = query.shape
    shared = keys.shape[1]
    grouped = query.reshape(batch, shared, heads // shared * count, width)
    scores = grouped @ keys.transpose(-1, -2) * width**-0.5
    scores = (cap * torch.tanh(scores / cap)).unflatten(2, (-1, count))
    scores = scores.masked_fill(~allowed[:, None, None], torch.finfo(scores.dtype).min)
    kind = torch.float32 if scores.dtype.itemsize < 4 else scores.dtype
    weights = scores.softmax(-1, dtype=kind).to(query.dtype).flatten(2, 3)
    return (weights @ values).unflatten(2, (-1, count)).flatten(1, 2)


def flex_capped_attention(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, cap: float) -> Tensor:
    """The same as ``eager_attention`` by ``flex_attention``, without the matrix of scores in memory.

    On the CPU torch has its forward alone: raises UserError where a gradient is wanted there.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad):
        raise UserError(
            "model.attention=flex trains on cards alone: torch has no backward of flex_attention for the CPU. "
            "Set model.attention=eager, or freeze=[vlm]."
        )

    def score(value: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return torch.where(allowed[batch, row, column], cap * torch.tanh(value / cap), _BLOCKED)

    return _flex(query.device.type)(query, keys, values, score_mod=score, enable_gqa=True)


@functools.cache
def _flex(device: str) -> Callable[..., Any]:
    """flex_attention, compiled on cards: uncompiled it forms all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return kernel if device == "cpu" else torch.compile(kernel, dynamic=False)


KERNELS = {"eager": eager_attention, "flex": flex_capped_attention}
"""By the name in ``Config.attention``."""
