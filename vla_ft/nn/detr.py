"""The transformer of DETR (Carion et al. 2020): positions are added to queries and keys of each layer, never values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "glu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "glu": F.glu}


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What every layer of a stack has in common. ``glu`` gates one half of the feed-forward width with the other."""

    dim: int
    heads: int
    feedforward: int
    dropout: float = 0.1
    activation: Activation = "relu"
    pre_norm: bool = False


class FeedForward(nn.Module):
    """Base of both layers: the two linear maps under DETR's names ``linear1`` and ``linear2``."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        gated = shape.activation == "glu"
        self.linear1 = nn.Linear(shape.dim, shape.feedforward)
        self.linear2 = nn.Linear(shape.feedforward // 2 if gated else shape.feedforward, shape.dim)
        self.activation = _ACTIVATIONS[shape.activation]
        self.dropout = nn.Dropout(shape.dropout)
        self.pre_norm = shape.pre_norm

    def feed_forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to the same shape, dropout included, without the residual."""
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class EncoderLayer(FeedForward):
    """Self-attention and feed-forward."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        self.self_attn = _attention(shape)
        self.norm1 = nn.LayerNorm(shape.dim)
        self.norm2 = nn.LayerNorm(shape.dim)

    def _attend(self, x: Tensor, positions: Tensor, ignore: Tensor | None) -> Tensor:
        placed = x + positions
        return self.dropout(self.self_attn(placed, placed, x, key_padding_mask=ignore, need_weights=False)[0])

    def forward(self, x: Tensor, positions: Tensor, ignore: Tensor | None = None) -> Tensor:
        """``x`` [B, L, D], ``positions`` [1 or B, L, D], ``ignore`` bool [B, L] (True: not attended to)."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), positions, ignore)
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, positions, ignore))
        return self.norm2(x + self.feed_forward(x))


class DecoderLayer(FeedForward):
    """Self-attention among the queries, attention to the encoder's output, and feed-forward."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        self.self_attn = _attention(shape)
        self.multihead_attn = _attention(shape)
        self.norm1 = nn.LayerNorm(shape.dim)
        self.norm2 = nn.LayerNorm(shape.dim)
        self.norm3 = nn.LayerNorm(shape.dim)

    def _attend_self(self, x: Tensor, queries: Tensor) -> Tensor:
        placed = x + queries
        return self.dropout(self.self_attn(placed, placed, x, need_weights=False)[0])

    def _attend_memory(self, x: Tensor, queries: Tensor, memory: Tensor, keys: Tensor, ignore: Tensor | None) -> Tensor:
        attended = self.multihead_attn(x + queries, keys, memory, key_padding_mask=ignore, need_weights=False)[0]
        return self.dropout(attended)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, keys: Tensor, ignore: Tensor | None = None) -> Tensor:
        """``x`` [B, K, D], its positions ``queries`` [1, K, D], ``memory`` [B, L, D]; ``keys``: memory + positions;
        ``ignore`` bool [B, L] marks memory that is not attended to."""
        if self.pre_norm:
            x = x + self._attend_self(self.norm1(x), queries)
            x = x + self._attend_memory(self.norm2(x), queries, memory, keys, ignore)
            return x + self.feed_forward(self.norm3(x))
        x = self.norm1(x + self._attend_self(x, queries))
        x = self.norm2(x + self._attend_memory(x, queries, memory, keys, ignore))
        return self.norm3(x + self.feed_forward(x))


class Encoder(nn.Module):
    """A stack of encoder layers; the pre-norm form ends with a LayerNorm of its own."""

    def __init__(self, shape: LayerShape, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(depth))
        self.norm = nn.LayerNorm(shape.dim) if shape.pre_norm else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, ignore: Tensor | None = None) -> Tensor:
        """``x`` [B, L, D] to the same shape; ``ignore`` bool [B, L] marks keys that nobody attends to."""
        for layer in self.layers:
            x = layer(x, positions, ignore)
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers. One LayerNorm serves the output of every layer."""

    def __init__(self, shape: LayerShape, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(depth))
        self.norm = nn.LayerNorm(shape.dim)

    def forward(
        self,
        x: Tensor,
        queries: Tensor,
        memory: Tensor,
        positions: Tensor,
        depth: int | None = None,
        ignore: Tensor | None = None,
    ) -> Tensor:
        """The normed outputs of the first ``depth`` layers (None: of all), stacked [layers, B, K, D].

        ``x`` [B, K, D], ``queries`` [1, K, D], ``memory`` [B, L, D], ``positions`` of the memory [1 or B, L, D],
        ``ignore`` bool [B, L]: memory that is not attended to.
        """
        keys = memory + positions
        outputs = []
        for layer in self.layers[:depth]:
            x = layer(x, queries, memory, keys, ignore)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


def xavier_uniform_(module: nn.Module) -> None:
    """DETR's start: Xavier-uniform for every parameter with two or more dimensions, in place."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _attention(shape: LayerShape) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(shape.dim, shape.heads, dropout=shape.dropout, batch_first=True)
