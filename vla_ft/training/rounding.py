"""AdamW for weights held in bfloat16: updates are computed in float32 and written back so that small ones are not lost.

Rounding to nearest drops every update below half of a weight's last place (2^-9 of it). Stochastic rounding keeps them
on average (Gupta et al., 2015); Kahan's compensation keeps them in a second bfloat16 tensor (Zamirai et al., 2020). The
moments stay float32: with beta2 = 0.999 a bfloat16 second moment would never move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

COMPENSATION = "compensation"
"""Name of the entry of an optimizer's state that carries what rounding lost."""
SMALLEST = 4096
"""Under 8-bit AdamW, tensors of fewer elements keep float32 moments, as bitsandbytes has it; here by the size of the
full tensor, so that the same tensors are small however they are cut."""


@dataclass(frozen=True)
class Rounding:
    """How float32 results become bfloat16 weights. ``seed`` and ``shard`` decide the draws of stochastic rounding.

    The draws of a tensor are a pure function of (seed, shard, step, number of the tensor): nothing has to be saved,
    and processes that hold copies of a share round them alike.
    """

    kind: Literal["stochastic", "kahan"]
    seed: int
    shard: int

    def read(self, weight: Tensor, state: dict[str, Any]) -> Tensor:
        """The weight as float32, a new tensor, with what was lost before added."""
        exact = weight.to(torch.float32, copy=True)
        if self.kind == "kahan" and weight.dtype == torch.bfloat16:
            if COMPENSATION not in state:
                state[COMPENSATION] = torch.zeros_like(weight)
            exact += state[COMPENSATION]
        return exact

    def write(self, weight: Tensor, exact: Tensor, state: dict[str, Any], step: int, number: int) -> None:
        """Round ``exact`` into ``weight``, in place."""
        if weight.dtype != torch.bfloat16:
            weight.copy_(exact)
        elif self.kind == "kahan":
            weight.copy_(exact)
            state[COMPENSATION].copy_(exact.sub_(weight))
        else:
            weight.copy_(round_stochastically(exact, self._generator(step, number, exact.device)))

    def _generator(self, step: int, number: int, device: torch.device) -> torch.Generator:
        words = np.random.SeedSequence([self.seed, self.shard, step, number]).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(words[0]) % 2**63)


def rounding_of(precision: str, seed: int, shard: int) -> Rounding | None:
    """The rounding that a run's precision asks for; None when its weights are float32."""
    kinds: dict[str, Literal["stochastic", "kahan"]] = {"bf16_stochastic": "stochastic", "bf16_kahan": "kahan"}
    return Rounding(kinds[precision], seed, shard) if precision in kinds else None


def round_stochastically(exact: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 to bfloat16, up or down with a probability proportional to the distance: right on average.

    A bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half carries into the upper one with
    just that probability, for either sign.
    """
    noise = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, device=exact.device, generator=generator)
    bits = noise.add_(exact.view(torch.int32)).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) of bfloat16 weights, one tensor at a time, so that the float32 copies that an
    update needs are those of a single tensor."""

    def __init__(
        self, params: Iterable[dict[str, Any]], *, rounding: Rounding, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"betas": betas, "eps": eps})
        self.rounding = rounding

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        if closure is not None:
            raise ValueError("gradients are computed before the step, a closure is not taken")
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, number)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        step = int(state["step"])
        first, second = group["betas"]
        gradient = gradient.to(torch.float32)
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        exact = self.rounding.read(parameter, state)
        exact.mul_(1 - group["lr"] * group["weight_decay"])
        spread = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - second**step)).add_(group["eps"])
        exact.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - first**step))
        self.rounding.write(parameter, exact, state, step, number)
