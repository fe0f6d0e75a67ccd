"""A transformer of any size behind the policy contract, for forecasts: nothing of it is ever trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ft.policies.base import Batch, Loss, Model


class Block(nn.Module):
    """A decoder layer of Llama's shape, without its positions."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to the same."""
        y = self.before(x)
        parts = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Tower(Model):
    """``depth`` equal blocks over the action chunk of a batch, and a head."""

    def __init__(self, depth: int, width: int, heads: int, inner: int, vocabulary: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width) if vocabulary else None
        self.layers = nn.ModuleList(Block(width, heads, inner) for _ in range(depth))
        self.head = nn.Linear(width, 14)
        self.width = width

    def forward(self, batch: Batch) -> Loss:
        """Squared error of the action chunk."""
        action = batch["action"]
        x = action.mean(-1, keepdim=True).expand(-1, -1, self.width)
        if self.table is not None:
            x = x + self.table(torch.zeros(action.shape[:2], dtype=torch.long))
        for layer in self.layers:
            x = layer(x)
        return Loss(F.mse_loss(self.head(x).float(), action))

    def sample(self, batch: Batch) -> Tensor:
        """Not asked for."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """``vlm`` and ``action``."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"vlm": [], "action": []}
        for name, parameter in self.named_parameters():
            groups["action" if name.startswith("head") else "vlm"].append((name, parameter))
        return groups

    def blocks(self) -> list[nn.Module]:
        """The layers."""
        return list(self.layers)


def seven_billion() -> Tower:
    """6.74 billion weights: Llama 2 7B's sizes."""
    return Tower(depth=32, width=4096, heads=32, inner=11008, vocabulary=64000)
