"""The Gaussian diffusion of CogACT's head: a cosine schedule of 100 steps, noise prediction, DDIM and DDPM sampling.

Nichol and Dhariwal 2021 (arXiv 2102.09672, schedule), Ho et al. 2020 (2006.11239, DDPM), Song et al. 2021 (2010.02502,
DDIM with eta 0), Ho and Salimans 2022 (2207.12598, guidance). Published as ``action_model/gaussian_diffusion.py`` and
``respace.py`` of microsoft/CogACT. diffusers' DDIM re-spaces the steps and rounds its tables otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_ft.errors import UserError

STEPS = 100
"""Training steps of the published head."""
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy actions [B, T, A], training step of each sample int64 [B]) to the predicted noise [B, T, A]."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a diffusion, in float64. ``steps`` says which of the training steps they are, ascending."""

    steps: np.ndarray
    """int64 [N]"""
    kept: np.ndarray
    """float64 [N]: share of the signal's variance that is left (alpha-bar)."""

    @classmethod
    def cosine(cls, steps: int = STEPS) -> Schedule:
        """``squaredcos_cap_v2``: betas from the cosine curve, none above 0.999."""

        def curve(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = np.array([min(1 - curve((i + 1) / steps) / curve(i / steps), 0.999) for i in range(steps)])
        return cls(np.arange(steps), np.cumprod(1 - betas))

    def respaced(self, count: int) -> Schedule:
        """``count`` of these steps at the smallest whole stride that gives so many: 10 of 100 are 0, 10, ..., 90.

        Raises UserError for a count that no stride gives.
        """
        if count == 1:  # as published: the middle
            chosen = np.array([len(self.steps) // 2])
        else:
            counts = ddim_counts(len(self.steps))
            if count not in counts:
                raise UserError(
                    f"DDIM cannot take {count} of {len(self.steps)} diffusion steps at an even stride. "
                    f"Choose one of {', '.join(map(str, counts))}."
                )
            stride = next(s for s in range(1, len(self.steps)) if len(range(0, len(self.steps), s)) == count)
            chosen = np.arange(0, len(self.steps), stride)
        return Schedule(self.steps[chosen], self.kept[chosen])

    @property
    def kept_before(self) -> np.ndarray:
        """float64 [N]: ``kept`` of the step before; 1 before the first."""
        return np.append(1.0, self.kept[:-1])

    @property
    def betas(self) -> np.ndarray:
        """float64 [N]: noise that each of *these* steps adds."""
        return 1 - self.kept / self.kept_before

    @property
    def posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of q(x_before | x, x0), float64 [N] each: factor of x0, factor of x, variance, and its logarithm with the
        first entry (zero variance) replaced by the second."""
        betas, kept, before = self.betas, self.kept, self.kept_before
        variance = betas * (1 - before) / (1 - kept)
        logarithm = np.log(np.append(variance[1] if len(variance) > 1 else 1.0, variance[1:]))
        return betas * np.sqrt(before) / (1 - kept), (1 - before) * np.sqrt(1 - betas) / (1 - kept), variance, logarithm


def ddim_counts(steps: int) -> list[int]:
    """The counts that ``Schedule.respaced`` takes."""
    return sorted({len(range(0, steps, stride)) for stride in range(1, steps)} | {1})


def add_noise(schedule: Schedule, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    """x_t of ``clean`` [B, T, A] at training step ``step`` int64 [B], by the whole schedule."""
    signal = _gather(np.sqrt(schedule.kept), step, clean)
    return signal * clean + _gather(np.sqrt(1 - schedule.kept), step, clean) * noise


def sample_ddim(denoise: Denoise, noise: Tensor, schedule: Schedule) -> Tensor:
    """Clean actions [B, T, A] from ``noise`` through every step of ``schedule``, without further noise (eta 0)."""
    x = noise
    for index in reversed(range(len(schedule.steps))):
        clean, predicted = _split(denoise, x, schedule, index)
        before = schedule.kept_before[index]
        x = math.sqrt(before) * clean + math.sqrt(1 - before) * predicted
    return x


def sample_ddpm(
    denoise: Denoise, noise: Tensor, schedule: Schedule, drawn: Callable[[Tensor], Tensor] = torch.randn_like
) -> Tensor:
    """Clean actions [B, T, A] by ancestral sampling; ``drawn`` gives the noise of each step but the last."""
    x = noise
    of_clean, of_x, _, log_variance = schedule.posterior
    for index in reversed(range(len(schedule.steps))):
        clean, _ = _split(denoise, x, schedule, index)
        mean = float(of_clean[index]) * clean + float(of_x[index]) * x
        x = mean if index == 0 else mean + math.exp(0.5 * log_variance[index]) * drawn(x)
    return x


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of predicted noise: away from what is predicted without the condition."""
    return unconditional + scale * (conditional - unconditional)


def check_scale(scale: float) -> float:
    """A scale of ``guided``, as it is. Raises UserError for one that is no number: it would reach the robot."""
    if not math.isfinite(scale):
        raise UserError(f"cfg_scale is {scale}; expected a number, such as 1.5. 1 is without guidance.")
    return scale


def _split(denoise: Denoise, x: Tensor, schedule: Schedule, index: int) -> tuple[Tensor, Tensor]:
    """What a sample holds at a step: predicted clean actions, and the noise that they leave."""
    step = torch.full((len(x),), int(schedule.steps[index]), device=x.device)
    kept = schedule.kept[index]
    scale, share = math.sqrt(1 / kept), math.sqrt(1 / kept - 1)
    clean = scale * x - share * denoise(x, step)
    return clean, (scale * x - clean) / share


def _gather(table: np.ndarray, step: Tensor, like: Tensor) -> Tensor:
    return torch.from_numpy(table).to(like.device)[step].float().view(-1, *[1] * (like.ndim - 1))
