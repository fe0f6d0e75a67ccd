"""The layers of a block: the published norm, attention with normalised queries and keys, a narrow MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ft.policies.rdt.config import NormKind

EPSILON = 1e-6
KeysValues = tuple[Tensor, Tensor]
"""Normalised keys and values of a condition in one block, each [B, heads, C, head dim]."""


class ScaleNorm(nn.Module):
    """``x / sqrt(s + 1e-6) * weight`` over the last dimension, computed in float32.

    ``variance``: s is the unbiased variance about the mean, and x is not centred. The published environment computes
    this under the name RMSNorm (timm 1.0.3; huggingface/pytorch-image-models#2380). ``rms``: s is the mean square.
    """

    def __init__(self, dim: int, kind: NormKind) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type as ``x`` [..., dim]."""
        wide = x.float()
        spread = wide.var(-1, keepdim=True) if self.kind == "variance" else wide.square().mean(-1, keepdim=True)
        return (wide * torch.rsqrt(spread + EPSILON) * self.weight.float()).to(x.dtype)


class SelfAttention(nn.Module):
    """Full attention among the tokens of a chunk, without positions of its own."""

    def __init__(self, dim: int, heads: int, norm: NormKind) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = ScaleNorm(dim // heads, norm)
        self.k_norm = ScaleNorm(dim // heads, norm)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to the same."""
        q, k, v = _split(self.qkv(x), 3, self.heads)
        return self.proj(_join(F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)))


class Kept:
    """What a block keeps of its condition while a chunk is denoised: the condition is the same in every step."""

    def __init__(self) -> None:
        self.keys_values: KeysValues | None = None


class CrossAttention(nn.Module):
    """Attention from the tokens of a chunk to those of one condition, which is not normalised first."""

    def __init__(self, dim: int, heads: int, norm: NormKind) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.q_norm = ScaleNorm(dim // heads, norm)
        self.k_norm = ScaleNorm(dim // heads, norm)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None, kept: Kept | None = None) -> Tensor:
        """[B, S, D] given ``condition`` [B, C, D]; ``mask`` bool [B, C] is True where it may be looked at.

        ``kept``: filled by the first call, and what the next ones use instead of ``condition``.
        """
        (q,) = _split(self.q(x), 1, self.heads)
        if kept is None:
            k, v = self.keys_values(condition)
        else:
            if kept.keys_values is None:
                kept.keys_values = self.keys_values(condition)
            k, v = kept.keys_values
        allowed = None if mask is None else mask[:, None, None, :]
        return self.proj(_join(F.scaled_dot_product_attention(self.q_norm(q), k, v, attn_mask=allowed)))

    def keys_values(self, condition: Tensor) -> KeysValues:
        """Of ``condition`` [B, C, D]."""
        k, v = _split(self.kv(condition), 2, self.heads)
        return self.k_norm(k), v


class Mlp(nn.Module):
    """Two linear layers with GELU (tanh form) between; as wide inside as outside."""

    def __init__(self, dim: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., out]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, attention to one condition, MLP; each added to its input, which is normalised first."""

    def __init__(self, dim: int, heads: int, norm: NormKind) -> None:
        super().__init__()
        self.norm1 = ScaleNorm(dim, norm)
        self.attn = SelfAttention(dim, heads, norm)
        self.norm2 = ScaleNorm(dim, norm)
        self.cross_attn = CrossAttention(dim, heads, norm)
        self.norm3 = ScaleNorm(dim, norm)
        self.ffn = Mlp(dim)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None, kept: Kept | None = None) -> Tensor:
        """[B, S, D] to the same; ``condition``, ``mask`` and ``kept`` as in ``CrossAttention``."""
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2(x), condition, mask, kept)
        return x + self.ffn(self.norm3(x))


def _split(packed: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B, S, parts * D], parts packed one after another, to ``parts`` tensors [B, heads, S, head dim]."""
    size, length, width = packed.shape
    return packed.view(size, length, parts, heads, width // (parts * heads)).permute(2, 0, 3, 1, 4).unbind(0)


def _join(heads: Tensor) -> Tensor:
    """[B, heads, S, head dim] to [B, S, D]."""
    return heads.transpose(1, 2).flatten(2)
