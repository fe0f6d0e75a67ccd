"""Which engines, optimizers, precisions and offloads go together: one table, read by the trainer and the planner.

A pair that cannot work, or would be ignored, is refused in words before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vla_ft.config import EngineName, Precision, RunConfig
from vla_ft.errors import UserError

SHARDED = ("fsdp2", "hsdp")
ZERO = ("zero1", "zero2", "zero3")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The fields that constrain each other, with the processes and the kind of device that a run really has."""

    engine: EngineName
    world_size: int
    shard_group: int
    """Processes that hold one copy of the model together."""
    optimizer: Literal["adamw", "adamw8bit"]
    kernel: Literal["auto", "loop", "foreach", "fused"]
    precision: Precision
    frozen_dtype: Literal["fp32", "bf16"]
    offload: Literal["none", "optimizer", "all"]
    compile: bool
    frozen: bool
    """Whether any part is frozen, by ``freeze`` or under adapters."""
    adapters: bool
    asked_shard_group: int | None
    """As given; ``shard_group`` is what it comes to."""
    accumulation: int = 1
    """Micro-batches of an update."""
    cached: str = ""
    """Parts whose features are to be cached, with commas."""

    @classmethod
    def of(cls, config: RunConfig, world_size: int, local_world_size: int) -> Setup:
        """What ``config`` asks for on ``world_size`` processes, ``local_world_size`` of them on each machine."""
        engine = resolve_engine(config.engine, world_size)
        group = config.shard_group or local_world_size
        return cls(
            engine=engine,
            world_size=world_size,
            shard_group={"hsdp": group, "single": 1, "ddp": 1}.get(engine, world_size),
            optimizer=config.optimizer.name,
            kernel=config.optimizer.kernel,
            precision=config.precision,
            frozen_dtype=config.frozen_dtype,
            offload=config.offload,
            compile=config.compile,
            frozen=bool(config.freeze or config.lora),
            adapters=bool(config.lora),
            asked_shard_group=config.shard_group,
            accumulation=config.batch.accumulation,
            cached=",".join(config.frozen_features.parts) if config.frozen_features else "",
        )


@dataclass(frozen=True)
class Rule:
    """A combination that is refused, and the sentence that says why and what to do."""

    applies: Callable[[Setup], bool]
    sentence: str


RULES: tuple[Rule, ...] = (
    Rule(
        lambda s: s.engine == "single" and s.world_size > 1,
        "engine=single runs in one process, this run has {world_size}. "
        "Set devices=1, or engine=ddp, fsdp2, hsdp or zero2.",
    ),
    Rule(
        lambda s: s.asked_shard_group is not None and s.engine != "hsdp",
        "shard_group={asked_shard_group} is for engine=hsdp, this run has engine={engine}, which "
        "shards over all processes or none. Remove shard_group, or set engine=hsdp.",
    ),
    Rule(
        lambda s: s.engine == "hsdp" and (s.world_size % s.shard_group != 0 or s.shard_group in (1, s.world_size)),
        "engine=hsdp needs shard_group to divide the {world_size} processes into two or more groups of two or more; "
        "it is {shard_group}. With one group use engine=fsdp2, with groups of one engine=ddp.",
    ),
    Rule(
        lambda s: s.engine in ("single", "ddp") and s.offload != "none",
        "engine={engine} keeps everything on its device, so offload={offload} would do nothing. Set engine=fsdp2 "
        "offload=all, or engine=zero2 offload=optimizer; both also run on one card.",
    ),
    Rule(
        lambda s: s.engine in SHARDED and s.offload == "optimizer",
        "engine={engine} moves weights, gradients and optimizer state to the host together. Set offload=all, or "
        "engine=zero2 offload=optimizer.",
    ),
    Rule(
        lambda s: s.engine in ("zero1", "zero2") and s.offload == "all",
        "engine={engine} keeps whole weights on the card, so they cannot be offloaded. Set offload=optimizer, or "
        "engine=zero3 offload=all.",
    ),
    Rule(
        lambda s: s.engine in ZERO and s.precision in ("bf16_stochastic", "bf16_kahan"),
        "engine={engine} keeps float32 weights of its own beside bfloat16 ones, so precision={precision} "
        "does not apply. Set precision=bf16, or engine=fsdp2.",
    ),
    Rule(
        lambda s: s.engine in ZERO and s.optimizer == "adamw8bit",
        "engine={engine} steps flat slices of all weights, whose 8-bit state could not be saved by parameter. "
        "Set optimizer.name=adamw, or engine=fsdp2.",
    ),
    Rule(
        lambda s: s.engine in ZERO and s.precision == "bf16" and s.frozen and s.frozen_dtype == "fp32",
        "engine={engine} with precision=bf16 holds frozen weights in bfloat16. Say frozen_dtype=bf16, or use "
        "engine=fsdp2 or precision=fp32.",
    ),
    Rule(
        lambda s: s.engine == "zero1" and s.precision == "bf16" and s.offload == "none" and s.accumulation > 1,
        "engine=zero1 with precision=bf16 sums the gradients of batch.accumulation={accumulation} micro-batches in "
        "bfloat16. Set engine=zero2, which sums them in float32, or batch.accumulation=1.",
    ),
    Rule(
        lambda s: s.engine == "zero3" and s.compile,
        "engine=zero3 gathers weights in hooks that torch.compile breaks. Set compile=false, or engine=fsdp2.",
    ),
    Rule(
        lambda s: s.optimizer == "adamw8bit" and s.offload == "all",
        "optimizer.name=adamw8bit shrinks what offload=all takes off the card anyway. "
        "Set optimizer.name=adamw, or offload=none.",
    ),
    Rule(
        lambda s: s.optimizer == "adamw8bit" and s.kernel != "auto",
        "optimizer.kernel={kernel} is for optimizer.name=adamw; adamw8bit has its own. Remove optimizer.kernel.",
    ),
    Rule(
        lambda s: s.precision in ("bf16_stochastic", "bf16_kahan") and s.kernel in ("foreach", "fused"),
        "precision={precision} rounds each weight's update itself, one tensor at a time. "
        "Remove optimizer.kernel={kernel}.",
    ),
    Rule(
        lambda s: s.precision in ("bf16_stochastic", "bf16_kahan") and s.adapters,
        "Adapters are few and train in float32, so precision={precision} would save nothing and FSDP2 cannot mix the "
        "types of trained weights. Set precision=bf16 frozen_dtype=bf16.",
    ),
    Rule(
        lambda s: s.frozen_dtype == "bf16" and not s.frozen,
        "frozen_dtype=bf16 is for weights that are not trained, and nothing is frozen. Remove frozen_dtype, or name "
        "parts in freeze or lora.",
    ),
    Rule(
        lambda s: s.precision == "fp32" and s.frozen_dtype == "bf16",
        "frozen_dtype=bf16 under precision=fp32 would compute in two types. Set precision=bf16, or frozen_dtype=fp32.",
    ),
    Rule(  # which weights a part has is known later: `frozen_parts.cacheable` asks the model
        lambda s: bool(s.cached) and not s.frozen,
        "frozen_features.parts=[{cached}] is for parts that are not trained, and nothing is frozen. Freeze them with "
        "freeze=[{cached}], or set frozen_features=null.",
    ),
)  # fmt: skip


def resolve_engine(name: EngineName, world_size: int) -> EngineName:
    """``auto`` made concrete."""
    if name != "auto":
        return name
    return "single" if world_size == 1 else "ddp"


def refusals(setup: Setup) -> list[str]:
    """Why a setup cannot work, one sentence a reason; empty when it can."""
    values = vars(setup)
    return [rule.sentence.format(**values) for rule in RULES if rule.applies(setup)]


def refuse(setup: Setup) -> None:
    """Raise UserError with every reason why a setup cannot work."""
    reasons = refusals(setup)
    if reasons:
        raise UserError("\n".join(reasons))
