"""Noise in training (DDPM, Ho et al. 2020) and its removal in a few steps (DPM-Solver++, Lu et al. 2022)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Prediction = Literal["sample", "epsilon"]
_LARGEST_BETA = 0.999


@functools.lru_cache(maxsize=4)
def kept_signal(steps: int) -> tuple[float, ...]:
    """How much of the signal's power is left at each of ``steps`` levels: the squared cosine (Nichol, Dhariwal 2021).

    Factors are float32 and their products are accumulated in float64, as torch does it on the CPU: the published bits.
    """

    def share(place: float) -> float:
        return math.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - share((i + 1) / steps) / share(i / steps), _LARGEST_BETA) for i in range(steps)]
    factors = np.float32(1) - np.asarray(betas, dtype=np.float32)
    return tuple(float(value) for value in np.cumprod(factors, dtype=np.float64).astype(np.float32))


def add_noise(clean: Tensor, noise: Tensor, time: Tensor, steps: int) -> Tensor:
    """``sqrt(a) clean + sqrt(1 - a) noise`` at levels ``time`` int [B], in the type of ``clean`` [B, ...]."""
    kept = torch.tensor(kept_signal(steps), device=clean.device).to(clean.dtype)[time]
    kept = kept.view(-1, *[1] * (clean.ndim - 1))
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def solve(
    denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, *, steps: int, train_steps: int, prediction: Prediction
) -> Tensor:
    """Clean actions from ``noise``: ``denoise(noisy, time [1])`` is asked ``steps`` times. Same shape and type."""
    iterates = trajectory(denoise, noise, steps=steps, train_steps=train_steps, prediction=prediction)
    return [iterate for iterate, _ in iterates][-1]


def trajectory(
    denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, *, steps: int, train_steps: int, prediction: Prediction
) -> Iterator[tuple[Tensor, Tensor]]:
    """The solver's steps: (next iterate, what ``denoise`` said). DPM-Solver++ of second order, midpoint, in float32."""
    scheduler = solver(train_steps, prediction)
    scheduler.set_timesteps(steps)
    sample = noise
    for time in scheduler.timesteps.tolist():
        said = denoise(sample, torch.tensor([time], device=noise.device)).to(noise.dtype)
        sample = scheduler.step(said, time, sample).prev_sample
        yield sample, said


def solver(train_steps: int, prediction: Prediction):  # type: ignore[no-untyped-def]
    """diffusers' solver with the published settings, whose numbers it gives."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=train_steps, beta_schedule="squaredcos_cap_v2", prediction_type=prediction
    )
