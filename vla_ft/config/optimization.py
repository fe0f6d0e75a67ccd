"""The sections of an update: its batch, the optimizer with its groups, the learning rate's course, the average."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from vla_ft.config.values import STRICT, Fraction, NotNegative
from vla_ft.data.opening import Positive
from vla_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Global batch = per_device x accumulation x processes."""

    __pydantic_config__ = STRICT

    per_device: Positive = 8
    accumulation: Positive = 1


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate factor as a function of the step: linear warm-up, then constant, linear or cosine decay, or cosine
    cycles that begin anew (Loshchilov and Hutter, 2017)."""

    __pydantic_config__ = STRICT

    name: Literal["constant", "linear", "cosine", "cosine_restarts"] = "constant"
    warmup_steps: NotNegative = 0
    """``cosine_restarts`` warms up in every cycle, from ``final_fraction``, which its first two updates share."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor reached at the last step of ``linear`` and ``cosine``; the lowest one of ``cosine_restarts``."""
    cycle_steps: Positive | None = None
    """``cosine_restarts``: steps of the first cycle, its warm-up included."""
    cycle_growth: Annotated[float, Field(gt=0)] = 1.0
    """How many times as long the next cycle is, without its warm-up."""
    cycle_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The peak of the next cycle as a share of this one's."""

    def __post_init__(self) -> None:
        cycles = self.cycle_steps is not None or self.cycle_growth != 1 or self.cycle_decay != 1
        if self.name != "cosine_restarts" and cycles:
            raise UserError(f"schedule.cycle_* are for name=cosine_restarts, not {self.name}. Remove them, or set it.")
        if self.name == "cosine_restarts" and (self.cycle_steps is None or self.cycle_steps <= self.warmup_steps):
            raise UserError(
                f"schedule.cycle_steps is {self.cycle_steps} with {self.warmup_steps} steps of warm-up: "
                "cosine_restarts needs a cycle longer than its warm-up."
            )


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What one named part of a model (``backbone``, ``action``...) does differently."""

    __pydantic_config__ = STRICT

    lr: Annotated[float, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    schedule: ScheduleConfig | None = None
    """A schedule of its own; null takes the run's."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019) with optional settings per named part."""

    __pydantic_config__ = STRICT

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """``adamw8bit`` keeps both moments in 8 bits by blocks (Dettmers et al., 2022): 2 bytes a weight instead of 8."""
    kernel: Literal["auto", "loop", "foreach", "fused"] = "auto"
    """How ``adamw`` walks over the weights. ``foreach`` holds copies of all of them for the length of a step; ``auto``
    is ``fused`` on a card and ``loop`` on the CPU, which hold none."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    groups: dict[str, GroupConfig] = field(default_factory=dict)
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights; validation and inference then use it."""

    __pydantic_config__ = STRICT

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    start_step: NotNegative = 0
    """Until then the average is a copy of the weights."""
    power: Annotated[float, Field(gt=0)] | None = None
    """With a number p the decay grows with the steps n since the start, ``1 - (1 + n / inv_gamma)^-p``, up to
    ``decay`` (diffusers; RDT: 0.75)."""
    inv_gamma: Annotated[float, Field(gt=0)] = 1.0

    def decay_at(self, step: int) -> float:
        """What is kept of the average at update number ``step`` (0 is the first)."""
        if self.power is None:
            return 0.0 if step < self.start_step else self.decay
        grown = max(0, step - self.start_step - 1)
        return 0.0 if grown == 0 else min(self.decay, 1 - (1 + grown / self.inv_gamma) ** -self.power)
