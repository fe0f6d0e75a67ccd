"""Fixed sine position codes, in one and two dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0


def _sine_code(steps: Tensor, features: int) -> Tensor:
    """Interleaved code: even features ``sin(s / T^(2i/features))``, odd ones ``cos``. [...] to [..., features]."""
    index = torch.arange(features, dtype=steps.dtype, device=steps.device)
    period = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    angles = steps.unsqueeze(-1) / period
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sinusoid_table(positions: int, features: int) -> Tensor:
    """Position table float32 [1, positions, features] of "Attention Is All You Need", §3.5; ``features`` is even."""
    steps = torch.arange(positions, dtype=torch.float64)
    return _sine_code(steps, features).to(torch.float32).unsqueeze(0)


def sine_map(features: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """DETR's image position code float32 [1, features, height, width] (its appendix A.4).

    Half of the channels code the row, the other half the column; rows and columns count from 1 and are scaled to
    (0, 2 pi]. ``features`` is a multiple of 4.
    """

    def code(count: int) -> Tensor:
        steps = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        return _sine_code(steps / (count + 1e-6) * (2 * math.pi), features // 2)

    rows = code(height)[:, None, :].expand(height, width, -1)
    columns = code(width)[None, :, :].expand(height, width, -1)
    return torch.cat((rows, columns), dim=-1).permute(2, 0, 1).unsqueeze(0)
