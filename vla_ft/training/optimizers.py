"""Optimizers and learning-rate schedules by named parts of the model. Optimizers step plain tensors, never shards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_ft.config import OptimizerConfig, Precision, ScheduleConfig
from vla_ft.errors import UserError, unknown
from vla_ft.policies.base import Model
from vla_ft.training.rounding import RoundingAdamW, rounding_of


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


def build_optimizer(
    model: Model,
    config: OptimizerConfig,
    *,
    trained: Mapping[str, nn.Parameter] | None = None,
    numels: Mapping[str, int] | None = None,
    precision: Precision = "fp32",
    noise: tuple[int, int] = (0, 0),
) -> torch.optim.Optimizer:
    """AdamW with one parameter group per trainable part. Each group keeps its ``name`` and its ``base_lr``.

    ``trained`` gives by name what is stepped instead of the model's own parameters, such as the local part of a shard,
    and ``numels`` the sizes of the full tensors, where they are larger. ``noise`` is the seed of stochastic rounding
    and the number of the share that is rounded: copies of a share must round alike.
    """
    if trained is None:
        trained = {name: p for members in model.parameter_groups().values() for name, p in members if p.requires_grad}
    settings = _groups(model, config, trained)
    rounding = rounding_of(precision, *noise)
    common: dict[str, Any] = {"betas": config.betas, "eps": config.eps}
    if config.name == "adamw8bit":
        from vla_ft.training.eight_bit import EightBitAdamW

        sizes = {id(p): (numels or {}).get(name, p.numel()) for name, p in trained.items()}
        return EightBitAdamW(settings, sizes=sizes, rounding=rounding, **common)
    if rounding is not None:
        return RoundingAdamW(settings, rounding=rounding, **common)
    return torch.optim.AdamW(settings, **common, **_kernel(config, trained))


def _groups(model: Model, config: OptimizerConfig, trained: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    parts = model.parameter_groups()
    for name in config.groups:
        if name not in parts:
            raise unknown("part of the model in optimizer.groups", name, parts)
    settings = []
    for name, members in parts.items():
        parameters = [trained[full] for full, _ in members if full in trained]
        own = config.groups.get(name)
        lr = config.lr if own is None or own.lr is None else own.lr
        decay = config.weight_decay if own is None or own.weight_decay is None else own.weight_decay
        if parameters:
            settings.append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay, "name": name})
    return settings


def _kernel(config: OptimizerConfig, trained: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """``fused`` on a card and ``loop`` on the CPU hold no copies of weights; torch's own choice, ``foreach``, does."""
    kernel = config.kernel
    if kernel == "auto":
        kernel = "fused" if all(p.device.type == "cuda" for p in trained.values()) else "loop"
    return {"foreach": kernel == "foreach", "fused": kernel == "fused"}


def restore_state(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    state: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Set an optimizer's state by parameter name. torch's own ``load_state_dict`` would cast moments to the weights'
    type, which bfloat16 weights must not have."""
    flags = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, entries in state.items():
        parameter = trained[name]
        if isinstance(optimizer, torch.optim.AdamW | RoundingAdamW):
            on_device = bool(flags[id(parameter)].get("fused"))
            optimizer.state[parameter] = {
                key: value.to(parameter.device if on_device else "cpu", torch.float32, copy=True).reshape(())
                if key == "step"
                else value.to(parameter.device, copy=True).view(parameter.shape)
                for key, value in entries.items()
            }
        else:
            optimizer.restore(parameter, entries)  # type: ignore[attr-defined]


def schedule_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor on the learning rate of the update that takes the run from ``step`` to ``step + 1``.

    A pure function of the step: there is no scheduler state to save, and none to restore wrongly.
    """
    if config.name == "cosine_restarts":
        return _restarts(config, step)
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    # The last update is number steps - 1.
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps))
    shape = 1 - progress if config.name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_fraction + (1 - config.final_fraction) * shape


def _restarts(config: ScheduleConfig, step: int) -> float:
    """open-pi-zero's form, in which the first update counts for no cycle: the bottom, then warm-up and cosine."""
    low, warmup, length = config.final_fraction, config.warmup_steps, config.cycle_steps
    assert length is not None
    if step == 0:
        return low
    place, cycle = step - 1, 0
    if config.cycle_growth == 1:
        cycle, place = divmod(place, length)
    while place >= length:
        place, cycle = place - length, cycle + 1
        length = int((length - warmup) * config.cycle_growth) + warmup
    peak = config.cycle_decay**cycle
    if place < warmup:
        return low + (peak - low) * place / warmup
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * (place - warmup) / (length - warmup)))


def set_learning_rates(
    optimizer: torch.optim.Optimizer, schedule: ScheduleConfig, config: OptimizerConfig, step: int, steps: int
) -> dict[str, float]:
    """Set every group's rate for the update after ``step`` of ``steps``: its base rate times the factor of its own
    schedule, or of the run's. Returns the rates by group name."""
    for group in optimizer.param_groups:
        own = config.groups.get(group["name"])
        followed = schedule if own is None or own.schedule is None else own.schedule
        group["lr"] = group["base_lr"] * schedule_factor(followed, step, steps)
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
