"""Optimizers, learning-rate schedules and weight averages, all by named parts of the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vla_ft.config import EmaConfig, OptimizerConfig, ScheduleConfig
from vla_ft.errors import UserError, unknown
from vla_ft.policies.base import Model


def freeze_parts(model: Model, parts: tuple[str, ...]) -> None:
    """Stop the gradients of the named parts. Raises UserError for a name the model does not have."""
    groups = model.parameter_groups()
    for part in parts:
        if part not in groups:
            raise unknown("part of the model to freeze", part, groups)
        for _, parameter in groups[part]:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for members in groups.values() for _, parameter in members):
        raise UserError(f"freeze=[{','.join(parts)}] leaves nothing to train. The parts are: {', '.join(groups)}.")


def build_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with one parameter group per trainable part. Each group keeps its ``name`` and its ``base_lr``."""
    groups = model.parameter_groups()
    for name in config.groups:
        if name not in groups:
            raise unknown("part of the model in optimizer.groups", name, groups)
    settings = []
    for name, members in groups.items():
        parameters = [p for _, p in members if p.requires_grad]
        own = config.groups.get(name)
        lr = config.lr if own is None or own.lr is None else own.lr
        decay = config.weight_decay if own is None or own.weight_decay is None else own.weight_decay
        if parameters:
            settings.append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay, "name": name})
    return torch.optim.AdamW(settings, betas=config.betas, eps=config.eps)


def schedule_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor on the learning rate of the update that takes the run from ``step`` to ``step + 1``.

    A pure function of the step: there is no scheduler state to save, and none to restore wrongly.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    # The last update is number steps - 1.
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps))
    shape = 1 - progress if config.name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_fraction + (1 - config.final_fraction) * shape


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Apply the schedule's factor to every group's own base rate; returns the rates by group name."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


class Ema:
    """Exponential moving average of a model's trainable weights alone: buffers are the model's own."""

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after the update number ``step`` (0 is the first)."""
        weight = 1.0 if step < self.config.start_step else 1 - self.config.decay
        parameters = dict(model.named_parameters())
        names = list(self.average)
        torch._foreach_lerp_([self.average[n] for n in names], [parameters[n].detach() for n in names], weight)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the model's weights; a second call undoes the first."""
        parameters = dict(model.named_parameters())
        for name, average in self.average.items():
            kept = parameters[name].detach().clone()
            parameters[name].copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save, by parameter name."""
        return self.average

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` gave."""
        for name, average in self.average.items():
            average.copy_(state[name])
