"""Flow matching (Lipman et al. 2022, arXiv 2210.02747) from noise at time 0 to actions at time 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_UNIFORM_END = 1 - 1e-5


def time_code(time: Tensor, width: int, period: float) -> Tensor:
    """``[sin(t f), cos(t f)]`` float32 [B, width] of flow times [B]; frequencies f fall from 1 to ``1 / period``."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=time.device) * (-math.log(period) / (half - 1)))
    angles = time.float()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def draw_times(
    count: int, kind: Literal["beta", "uniform"], *, alpha: float, sigma: float, device: torch.device
) -> Tensor:
    """Flow times float32 [count] of a training batch, from torch's default generator."""
    if kind == "uniform":
        return uniform_times(torch.rand(1, device=device), count)
    return beta_times(torch.rand(count, device=device) ** (1 / alpha), sigma)


def beta_times(z: Tensor, sigma: float) -> Tensor:
    """``(1 - sigma)(1 - z)`` of z ~ Beta(alpha, 1), which is the ``1/alpha`` power of a uniform number."""
    return (1 - sigma) * (1 - z)


def uniform_times(offset: Tensor, count: int) -> Tensor:
    """Times [count] spread evenly over [0, 1) from one offset in it."""
    steps = torch.arange(count, device=offset.device) / count
    return (offset + steps) % _UNIFORM_END


def on_the_way(noise: Tensor, action: Tensor, time: Tensor, sigma: float) -> Tensor:
    """``(1 - (1 - sigma) t) noise + t action``, all [B, K, A] with times [B]."""
    time = time[:, None, None]
    return (1 - (1 - sigma) * time) * noise + time * action


def velocity(noise: Tensor, action: Tensor, sigma: float) -> Tensor:
    """What the model learns: the derivative of ``on_the_way`` by time."""
    return action - (1 - sigma) * noise


def integrate(start: Tensor, field: Callable[[Tensor, Tensor], Tensor], steps: int) -> Tensor:
    """Euler's method from time 0 to 1. ``field`` takes points [B, K, A] and times [B] to velocities."""
    point = start
    for number in range(steps):
        time = torch.full((len(point),), number / steps, device=point.device)
        point = point + field(point, time).to(point.dtype) / steps
    return point


class ActionEncoder(nn.Module):
    """Noisy actions, and the time code where ``timed``, to tokens."""

    def __init__(self, action_dim: int, width: int, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        self.linear_1 = nn.Linear(action_dim, width)
        self.linear_2 = nn.Linear(2 * width if timed else width, width)
        self.linear_3 = nn.Linear(width, width)

    def forward(self, action: Tensor, code: Tensor) -> Tensor:
        """Actions [B, K, A] and time code [B, D] to [B, K, D]."""
        x = self.linear_1(action.to(self.linear_1.weight.dtype))
        if self.timed:
            x = torch.cat((code[:, None].to(x.dtype).expand(-1, x.shape[1], -1), x), dim=-1)
        return self.linear_3(F.silu(self.linear_2(x)))
