"""The action head: a diffusion transformer (Peebles and Xie 2023, arXiv 2212.09748) with its condition as a token.

Published as ``action_model/models.py`` of microsoft/CogACT; parameters carry its names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vla_ft.nn.linear import InferenceLinear, gelu_of
from vla_ft.policies.cogact.vision import Attention

DitName = Literal["DiT-S", "DiT-B", "DiT-L"]


@dataclass(frozen=True, kw_only=True)
class DitShape:
    """Sizes of a head. The published ones are ``SIZES``."""

    width: int
    depth: int
    heads: int


SIZES: dict[DitName, DitShape] = {
    "DiT-S": DitShape(width=384, depth=6, heads=4),
    "DiT-B": DitShape(width=768, depth=12, heads=12),
    "DiT-L": DitShape(width=1024, depth=24, heads=16),
}
FREQUENCIES = 256
"""Width of a step's sinusoid."""


class Dit(nn.Module):
    """Predicts the noise in a chunk of actions: x [B, T, A], step int64 [B], condition z [B, 1, Z] to [B, T, A]."""

    def __init__(self, shape: DitShape, *, horizon: int, action_dim: int, condition_dim: int, drop: float) -> None:
        super().__init__()
        width = shape.width
        # As published: weights exist, nothing reads them. Frozen, so that neither DDP nor weight decay looks for them.
        self.history_embedder = _Embedder(action_dim, width).requires_grad_(False)
        self.x_embedder = _Embedder(action_dim, width)
        self.t_embedder = StepEmbedder(width)
        self.z_embedder = ConditionEmbedder(condition_dim, width, drop)
        self.positional_embedding = nn.Parameter(torch.empty(horizon + 1, width))
        self.blocks = nn.ModuleList(DitBlock(width, shape.heads) for _ in range(shape.depth))
        self.final_layer = _FinalLayer(width, action_dim)
        self.reset()

    def reset(self) -> None:
        """Fresh weights as published: the last layer is zero, so that the first prediction is no noise at all."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        narrow = (self.x_embedder.linear, self.history_embedder.linear, self.z_embedder.linear)
        for layer in (*narrow, *(part for part in self.t_embedder.mlp if isinstance(part, nn.Linear))):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(self.z_embedder.uncondition, std=0.02)
        nn.init.normal_(self.positional_embedding, std=self.positional_embedding.shape[1] ** -0.5)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, step: Tensor, z: Tensor, drop: Tensor | None = None) -> Tensor:
        """``drop`` bool [B]: whose condition is replaced by the learned "no condition"; None draws it in
        training, and drops none otherwise."""
        condition = self.t_embedder(step).unsqueeze(1) + self.z_embedder(z, drop)
        moves = self.x_embedder(x.to(self.positional_embedding.dtype))
        tokens = torch.cat((condition, moves), dim=1) + self.positional_embedding
        for block in self.blocks:
            tokens = block(tokens)
        return self.final_layer(tokens)[:, 1:]


class StepEmbedder(nn.Module):
    """A diffusion step int64 [B] as [B, width]: cosines, then sines, of 128 frequencies, through two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, step: Tensor) -> Tensor:
        """Steps count from 0, as in training, whichever of them a sampler keeps."""
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=step.device) / half)
        angles = step.float().unsqueeze(1) * rates
        waves = torch.cat((angles.cos(), angles.sin()), dim=1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


class ConditionEmbedder(nn.Module):
    """The cognition feature [B, 1, Z] as [B, 1, width]; in training some samples see ``uncondition`` instead."""

    def __init__(self, condition_dim: int, width: int, drop: float) -> None:
        super().__init__()
        self.linear = nn.Linear(condition_dim, width)
        self.uncondition = nn.Parameter(torch.empty(1, condition_dim))
        self.drop = drop

    def forward(self, z: Tensor, drop: Tensor | None = None) -> Tensor:
        """``drop`` bool [B], as in ``Dit.forward``."""
        if drop is None and self.training and self.drop > 0:
            drop = torch.rand(len(z), device=z.device) < self.drop
        return self.linear(z if drop is None else torch.where(drop[:, None, None], self.uncondition, z))


class DitBlock(nn.Module):
    """Attention and a four times wider MLP, each after a norm without weights. [B, L, width] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads, InferenceLinear)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then the MLP, each added to what went in."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Mlp(nn.Module):
    """Two layers with a GELU between, which as a pass of its own costs a tenth of their products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = InferenceLinear(width, 4 * width)
        self.fc2 = InferenceLinear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu_of(self.fc1, x, "tanh"))


class _Embedder(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm_final(x))
