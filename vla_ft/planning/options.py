"""One way to run a recipe: what has to be said to get it, how it is ranked, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vla_ft.config import RunConfig
from vla_ft.planning.cards import Target
from vla_ft.planning.forecast import Forecast, Planner, compute_of
from vla_ft.training.compatibility import Setup

ENGINE_COST = {"single": 0, "ddp": 0, "fsdp2": 2, "hsdp": 2, "zero1": 2, "zero2": 3, "zero3": 5}
OFFLOAD_COST = {"none": 0, "optimizer": 8, "all": 12}
CHECKPOINTING_COST = 4
ROUNDING_COST = {"fp32": 0, "bf16": 1, "bf16_kahan": 3, "bf16_stochastic": 3}
EIGHT_BIT_COST = 2
KERNEL_COST = 1
CACHING_COST = 1
"""It saves work, and asks for disk and a pass over the data first."""
"""Order of preference, not seconds: a change that costs more work or traffic stands behind one that costs less."""


@dataclass(frozen=True)
class Option:
    """A setup, what has to be said to get it, and what it holds."""

    config: RunConfig
    overrides: tuple[str, ...]
    changes_maths: bool
    """Other rounding, moments in other precision, or another method altogether."""
    cost: int
    forecast: Forecast
    method: str = ""
    """What is trained otherwise, for an alternative; empty for the method that was asked for."""

    @property
    def line(self) -> str:
        """The overrides, ready to paste."""
        return " ".join(self.overrides)


def setup_of(config: RunConfig, target: Target, planner: Planner) -> Setup:
    """The setup of ``config`` on the target's cards."""
    local = min(target.cards, planner.local or target.cards)
    return Setup.of(config, target.cards, local)


_FIELDS = ("engine", "precision", "frozen_dtype", "offload", "activation_checkpointing", "shard_group")


def words_of(asked: RunConfig, changed: RunConfig) -> tuple[str, ...]:
    """Overrides that lead from one to the other."""
    words = []
    for name in _FIELDS:
        old, new = getattr(asked, name), getattr(changed, name)
        if old != new and not (name == "engine" and _same_engine(old, new, asked)):
            words.append(f"{name}={_text(new)}")
    for name in ("name", "kernel"):
        if getattr(asked.optimizer, name) != getattr(changed.optimizer, name):
            words.append(f"optimizer.{name}={getattr(changed.optimizer, name)}")
    for name in ("per_device", "accumulation"):
        if getattr(asked.batch, name) != getattr(changed.batch, name):
            words.append(f"batch.{name}={getattr(changed.batch, name)}")
    if asked.freeze != changed.freeze:
        words.append(f"freeze=[{','.join(changed.freeze)}]")
    if changed.frozen_features is not None and changed.frozen_features != asked.frozen_features:
        words.append(f"frozen_features.parts=[{','.join(changed.frozen_features.parts)}]")
    for part, lora in changed.lora.items():
        if part not in asked.lora:
            words.append(f"lora.{part}.rank={lora.rank}")
    return tuple(words)


def _same_engine(old: str, new: str, config: RunConfig) -> bool:
    return old == "auto" and new in ("single", "ddp")


def _text(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if not isinstance(value, str) else value


def changes_maths(asked: Setup, changed: Setup) -> bool:
    """Whether numbers are rounded or moments kept otherwise than was asked for."""
    return _maths(asked) != _maths(changed)


def _maths(setup: Setup) -> tuple[str, ...]:
    """The same precision is computed under autocast by one engine and with bfloat16 weights by another."""
    compute = compute_of(setup)
    frozen = setup.frozen_dtype if setup.frozen and compute != "fp32" else "fp32"
    return setup.precision, setup.optimizer, compute, frozen


def cost_of(config: RunConfig, setup: Setup) -> int:
    """Its place in the order of preference."""
    return (
        ENGINE_COST[setup.engine]
        + OFFLOAD_COST[setup.offload]
        + CHECKPOINTING_COST * config.activation_checkpointing
        + ROUNDING_COST[setup.precision]
        + EIGHT_BIT_COST * (setup.optimizer == "adamw8bit")
        + KERNEL_COST * (setup.kernel == "foreach")
        + CACHING_COST * (config.frozen_features is not None)
    )
