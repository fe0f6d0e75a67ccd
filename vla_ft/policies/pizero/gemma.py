"""The transformer layer of Gemma (Gemma Team 2024, arXiv 2403.08295), for a kind of token over what came before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ft.policies.pizero.attention import KERNELS, rotate, rotation
from vla_ft.policies.pizero.config import Adaptive, Attention

_EPSILON = 1e-6
_GATE_BIAS = -2.0
"""adaLN-Zero begins with gates of sigmoid(-2)."""


class KeysValues(NamedTuple):
    """Keys and values of some tokens in one layer, each [B, kv_heads, T, head_dim]; keys are rotated already."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What the layers of one kind of token share. ``condition``: width of the time code of adaptive layers, else 0."""

    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    soft_cap: float
    attention: Attention = "eager"
    adaptive: Adaptive | None = None
    condition: int = 0


class RMSNorm(nn.Module):
    """``x / rms(x) * (1 + w)``, computed in float32 and rounded once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """[..., D] to [..., D]; ``condition`` is not used."""
        wide = x.float() if x.dtype.itemsize < 4 else x
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _EPSILON)
        return (normed * (1 + self.weight.to(wide.dtype))).to(x.dtype)


class AdaptiveRMSNorm(nn.Module):
    """``x / rms(x) * sigmoid(G c + g) + B c`` for a condition c [B, C] (after Peebles & Xie 2022, arXiv 2212.09748)."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.to_gamma = nn.Sequential(nn.Linear(condition, width), nn.Sigmoid())
        self.to_beta = nn.Linear(condition, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        assert condition is not None
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPSILON)
        return (normed * self.to_gamma(condition)[:, None] + self.to_beta(condition)[:, None]).to(x.dtype)


class AdaptiveScale(nn.Module):
    """adaLN-Zero's gate: ``x * sigmoid(W c + b)``, nearly closed at the start."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.to_adaln_zero_gamma = nn.Linear(condition, width)
        nn.init.zeros_(self.to_adaln_zero_gamma.weight)
        nn.init.constant_(self.to_adaln_zero_gamma.bias, _GATE_BIAS)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return x * self.to_adaln_zero_gamma(condition).sigmoid()[:, None]


class Projections(nn.Module):
    """Queries, keys, values and output of attention; no biases."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        queries, shared = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.width, queries, bias=False)
        self.k_proj = nn.Linear(shape.width, shared, bias=False)
        self.v_proj = nn.Linear(shape.width, shared, bias=False)
        self.o_proj = nn.Linear(queries, shape.width, bias=False)

    def heads(self, projected: Tensor) -> Tensor:
        """[B, T, heads * W] to [B, heads, T, W]."""
        return projected.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)


class GatedFeedForward(nn.Module):
    """``down(gelu(gate x) * up x)`` with the tanh form of GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """Attention over earlier kinds of token and one's own, then a feed-forward part; norms come first.

    A ``final`` layer ends after its keys and values: nothing reads what would follow, but the weights belong to the
    published model. Its queries are multiplied by zero, so that their gradient is zero and not absent, as published.
    """

    def __init__(self, shape: LayerShape, final: bool = False) -> None:
        super().__init__()
        self.shape, self.final = shape, final
        self.input_layernorm = _norm(shape)
        self.self_attn = Projections(shape)
        self.post_attention_layernorm = _norm(shape)
        self.mlp = GatedFeedForward(shape.width, shape.inner)
        if shape.adaptive == "adaLN-Zero":
            self.post_adaptive_scale = AdaptiveScale(shape.width, shape.condition)
            self.final_adaptive_scale = AdaptiveScale(shape.width, shape.condition)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        allowed: Tensor,
        before: Sequence[KeysValues] = (),
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` [B, T, D] to (``x`` after this layer, own keys, own values).

        ``turn``: ``rotation`` of the tokens. ``allowed`` bool [B, T, S]: what each sees of ``before`` and themselves,
        in this order. ``condition`` [B, C] of adaptive layers.
        """
        project = self.self_attn
        normed = self.input_layernorm(x, condition)
        keys = rotate(project.heads(project.k_proj(normed)), *turn)
        values = project.heads(project.v_proj(normed))
        if self.final:
            return x, keys + 0.0 * project.q_proj(normed[:, :1]).sum(), values
        query = rotate(project.heads(project.q_proj(normed)), *turn)
        all_keys = torch.cat([*(kept.keys for kept in before), keys], dim=2)
        all_values = torch.cat([*(kept.values for kept in before), values], dim=2)
        seen = KERNELS[self.shape.attention](query, all_keys, all_values, allowed, self.shape.soft_cap)
        x = x + self._gate("post", project.o_proj(seen.transpose(1, 2).flatten(2)), condition)
        x = x + self._gate("final", self.mlp(self.post_attention_layernorm(x, condition)), condition)
        return x, keys, values

    def _gate(self, place: str, x: Tensor, condition: Tensor | None) -> Tensor:
        return getattr(self, f"{place}_adaptive_scale")(x, condition) if self.shape.adaptive == "adaLN-Zero" else x


def _norm(shape: LayerShape) -> nn.Module:
    return AdaptiveRMSNorm(shape.width, shape.condition) if shape.adaptive else RMSNorm(shape.width)


class Stack(nn.Module):
    """All layers of one kind of token, and for experts the norm after them."""

    def __init__(self, shape: LayerShape, depth: int, theta: float, *, normed: bool, read: bool = True) -> None:
        """``read``: whether anything reads what comes out at the end, and not keys and values alone."""
        super().__init__()
        self.shape, self.theta = shape, theta
        self.layers = nn.ModuleList(Layer(shape, final=not read and i == depth - 1) for i in range(depth))
        self.norm = _norm(shape) if normed else None

    def forward(
        self,
        x: Tensor,
        first: int,
        allowed: Tensor,
        before: Sequence[Sequence[KeysValues]] = (),
        condition: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Inputs [B, T, D] to outputs [B, T, D] and the keys and values of every layer.

        ``first``: position of the first token. ``before``: keys and values of earlier kinds of token, each a list over
        layers. The inputs are scaled by the root of their width.
        """
        x = x * torch.tensor(self.shape.width**0.5, dtype=x.dtype)
        turn = rotation(x.shape[1], first, self.theta, self.shape.head_dim, x.device)
        kept = []
        for number, layer in enumerate(self.layers):
            x, keys, values = layer(x, turn, allowed, tuple(kind[number] for kind in before), condition)
            kept.append(KeysValues(keys, values))
        return x if self.norm is None else self.norm(x, condition), kept
