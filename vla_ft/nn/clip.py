"""CLIP's image tower (Radford et al. 2021, arXiv 2103.00020), by default ViT-B/32 as OpenAI published it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of pixels in [0, 1], as CLIP was trained."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Sizes of the tower; the defaults are ViT-B/32's (87,849,216 parameters)."""

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    heads: int = 12
    depth: int = 12
    out_channels: int = 512
    """Width of the space that images and texts share."""


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``: OpenAI's weights were trained with it. Exact GELU gives other features, in silence."""
    return x * torch.sigmoid(1.702 * x)


class ClipAttention(nn.Module):
    """Multi-head self-attention with four separate linear maps, which adapters can be added to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] to the same shape."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class ClipLayer(nn.Module):
    """A pre-norm transformer layer with QuickGELU. No dropout, as published."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width)
        self.attention = ClipAttention(shape.width, shape.heads)
        self.norm2 = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width)
        self.down = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(quick_gelu(self.up(self.norm2(x))))


class ClipVision(nn.Module):
    """Image to features in CLIP's shared space: one a patch, or the pooled one that CLIP compares with texts.

    Patch features are what the final norm and the projection make of the patches' own tokens, as for the class token,
    so that every weight is used either way. ``out_channels`` and ``image_size`` say what comes out and must go in.
    """

    def __init__(self, shape: ClipShape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or ClipShape()
        self.image_size, self.out_channels = shape.image_size, shape.out_channels
        patches = (shape.image_size // shape.patch_size) ** 2
        self.class_token = nn.Parameter(torch.empty(shape.width))
        self.positions = nn.Parameter(torch.empty(patches + 1, shape.width))
        self.patches = nn.Conv2d(3, shape.width, shape.patch_size, stride=shape.patch_size, bias=False)
        self.norm_in = nn.LayerNorm(shape.width)
        self.layers = nn.ModuleList(ClipLayer(shape) for _ in range(shape.depth))
        self.norm_out = nn.LayerNorm(shape.width)
        self.project = nn.Linear(shape.width, shape.out_channels, bias=False)
        self._initialise()

    def forward(self, images: Tensor, pooled: bool = False) -> Tensor:
        """Normalised images [B, 3, S, S] to features [B, out_channels, S / patch, S / patch]; ``pooled``: to the class
        token's [B, out_channels]."""
        patches = self.patches(images)
        grid = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(tokens), 1, -1).to(tokens.dtype)
        x = self.norm_in(torch.cat((first, tokens), dim=1) + self.positions)
        for layer in self.layers:
            x = layer(x)
        if pooled:
            return self.project(self.norm_out(x[:, 0]))
        return self.project(self.norm_out(x[:, 1:])).transpose(1, 2).unflatten(2, grid)

    def blocks(self) -> list[nn.Module]:
        """The transformer layers, first to last."""
        return list(self.layers)

    def _initialise(self) -> None:
        """CLIP's own start (its code's ``initialize_parameters``): widths and depth set the scales, biases are zero."""
        width, depth = self.shape.width, self.shape.depth
        scale = width**-0.5
        for parameter in (self.class_token, self.positions, self.project.weight):
            nn.init.normal_(parameter, std=scale)
        for layer in self.layers:
            assert isinstance(layer, ClipLayer)
            attention = layer.attention
            for linear in (attention.query, attention.key, attention.value):
                nn.init.normal_(linear.weight, std=scale)
            for linear in (attention.out, layer.down):
                nn.init.normal_(linear.weight, std=scale / math.sqrt(2 * depth))
            nn.init.normal_(layer.up.weight, std=(2 * width) ** -0.5)
            for linear in (attention.query, attention.key, attention.value, attention.out, layer.up, layer.down):
                nn.init.zeros_(linear.bias)
