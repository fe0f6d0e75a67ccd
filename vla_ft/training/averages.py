"""The moving average of trained weights, on whatever share of them this process holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vla_ft.config import EmaConfig


class Ema:
    """Exponential moving average of trained weights by name, float32 whatever their type. Buffers are the model's own.

    It works on this process's elements alone and never communicates: an average of shares is the share of the average.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: EmaConfig) -> None:
        self.config = config
        self.average = {name: w.detach().to(torch.float32, copy=True) for name, w in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Move the average towards the weights after the update number ``step`` (0 is the first)."""
        factor = 1 - self.config.decay_at(step)
        alike = [name for name, average in self.average.items() if weights[name].dtype == average.dtype]
        if alike:
            torch._foreach_lerp_([self.average[n] for n in alike], [weights[n].detach() for n in alike], factor)
        for name in self.average.keys() - set(alike):
            self.average[name].lerp_(weights[name].detach().float(), factor)
