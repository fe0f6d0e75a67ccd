"""Numbers as tokens: the code of time and rate, and the starting values of the position tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SINUSOID_WIDTH = 256


class ScalarEmbedder(nn.Module):
    """A number (diffusion time, control frequency) to a token: sinusoids, then an MLP with SiLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_WIDTH, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, values: Tensor) -> Tensor:
        """[B] to [B, dim]."""
        return self.mlp(sinusoid(values).to(next(self.parameters()).dtype))


def sinusoid(values: Tensor) -> Tensor:
    """float32 [B, 256]: cosines, then sines, of v / 10000^(k / 128)."""
    half = SINUSOID_WIDTH // 2
    frequencies = torch.exp(torch.arange(half, device=values.device) * (-math.log(10000) / half))
    angles = values.float()[:, None] * frequencies[None]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def sine_code(dim: int, positions: Tensor) -> Tensor:
    """float64 [n, dim] of ``positions`` [n]: sines, then cosines, of p / 10000^(2k / dim)."""
    rates = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * rates[None]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def sequence_table(dim: int, horizon: int) -> Tensor:
    """Starting positions of [time, rate, state, actions], float32 [1, horizon + 3, dim].

    The first half of the channels says which of the four kinds a token is, the second where it stands within it.
    """
    kinds = torch.cat((torch.arange(3), torch.full((horizon,), 3)))
    places = torch.cat((torch.zeros(3, dtype=torch.long), torch.arange(horizon)))
    return torch.cat((sine_code(dim // 2, kinds), sine_code(dim // 2, places)), dim=1).float()[None]


def language_table(dim: int, length: int) -> Tensor:
    """Starting positions of language, float32 [1, length, dim]: the same for every token, as T5 has its own."""
    return sine_code(dim, torch.zeros(1)).float().expand(length, dim)[None].clone()


def image_table(dim: int, grid: Sequence[int], patches: int) -> Tensor:
    """Starting positions of pictures, float32 [1, prod(grid) * patches, dim].

    ``grid``: how many along each axis, history and cameras. Axes of one are left out; the others share the channels.
    Patches of one picture are alike, as the tower has given them positions already.
    """
    table = torch.zeros(*grid, dim, dtype=torch.float64)
    axes = [axis for axis, size in enumerate(grid) if size > 1]
    width = dim // max(1, len(axes))
    width -= width % 2
    for number, axis in enumerate(axes):
        shape = [size if other == axis else 1 for other, size in enumerate(grid)]
        code = sine_code(width, torch.arange(grid[axis])).view(*shape, width)
        table[..., number * width : (number + 1) * width] = code
    return table.view(-1, 1, dim).expand(-1, patches, -1).reshape(1, -1, dim).float()


class Adaptor(nn.Sequential):
    """``linear``, or ``mlpKx_gelu``: K linear layers with GELU (tanh form) between. Indices of layers as published."""

    def __init__(self, kind: str, inside: int, outside: int) -> None:
        count = 1 if kind == "linear" else int(kind[3])
        layers: list[nn.Module] = [nn.Linear(inside, outside)]
        for _ in range(count - 1):
            layers += [nn.GELU(approximate="tanh"), nn.Linear(outside, outside)]
        super().__init__(*layers)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """[..., inside] of any type to [..., outside]."""
        return super().forward(x.to(next(self.parameters()).dtype))
