"""Two cameras' feature vectors made one: the heads of the bimanual ACT variant (jaron-cui/bimaminobolonana)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

FusionName = Literal["mean", "max", "concat_mlp", "gated", "bilinear"]


class CameraFusion(nn.Module):
    """``left`` and ``right`` [B, D] to [B, D], under the published names ``net.*`` and ``gate.*``.

    ``mean`` and ``max`` have no weights. ``concat_mlp``: an MLP over [l, r]. ``bilinear``: over [l * r, l, r].
    ``gated``: ``g l + (1 - g) r`` with one number g a sample, the sigmoid of an MLP over [l, r].
    """

    def __init__(self, name: FusionName, dim: int) -> None:
        super().__init__()
        self.name = name
        if name in ("concat_mlp", "bilinear"):
            inputs = 2 * dim if name == "concat_mlp" else 3 * dim
            self.net = nn.Sequential(nn.Linear(inputs, dim), nn.ReLU(), nn.Linear(dim, dim))
        elif name == "gated":
            self.gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The fused features [B, D]."""
        if self.name == "mean":
            return (left + right) / 2
        if self.name == "max":
            return torch.maximum(left, right)
        if self.name == "gated":
            share = torch.sigmoid(self.gate(torch.cat((left, right), dim=-1)))
            return share * left + (1 - share) * right
        both = (left, right) if self.name == "concat_mlp" else (left * right, left, right)
        return self.net(torch.cat(both, dim=-1))
