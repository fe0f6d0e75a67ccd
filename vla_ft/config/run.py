"""``RunConfig``: all sections of a run together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from vla_ft.config.data import DataConfig
from vla_ft.config.optimization import BatchConfig, EmaConfig, OptimizerConfig, ScheduleConfig
from vla_ft.config.sections import (
    CheckpointConfig,
    ExecutionConfig,
    FrozenFeaturesConfig,
    InitConfig,
    LoggingConfig,
    LoraConfig,
    ValidationConfig,
)
from vla_ft.config.values import STRICT, EngineName, PlanAnswer, Precision
from vla_ft.data.opening import Positive


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run depends on. It is stored resolved with every checkpoint."""

    __pydantic_config__ = STRICT

    recipe: str
    policy: str
    data: DataConfig
    steps: Positive
    output: str
    model: Any = None
    """The policy's own dataclass."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineName = "auto"
    """How the processes share the work; ``auto`` is ``single`` for one process and ``ddp`` for several."""
    shard_group: Positive | None = None
    """``hsdp``: how many neighbouring processes hold one copy of the model together; null is one machine's."""
    precision: Precision = "fp32"
    """``bf16`` computes in bfloat16 over float32 weights; ``bf16_stochastic`` and ``bf16_kahan`` hold the trained
    weights in bfloat16 too, and round updates at random without bias, or carry what rounding lost along (2 bytes)."""
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    """How weights that are not trained are held."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in host memory: the optimizer's state, or weights, gradients and state."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """``torch.compile`` block by block."""
    lora: dict[str, LoraConfig] = field(default_factory=dict)
    """Low-rank adapters by named part."""
    ema: EmaConfig | None = None
    freeze: tuple[str, ...] = ()
    """Named parts that get no gradient and no optimizer state."""
    frozen_features: FrozenFeaturesConfig | None = None
    """Which frozen parts are run once over the data instead of in every step; null for none."""
    init: InitConfig = field(default_factory=InitConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Literal["auto"] | Positive = "auto"
    """Processes on this machine: ``auto`` is one per visible card, or one on the CPU."""
    deterministic: bool = False
    """Deterministic kernels. On the CPU a run is bit-exact without it; on a GPU only with it."""
    resume: str = "auto"
    """``auto`` continues the run in ``output`` when there is one; ``never`` refuses to; or a checkpoint's path."""
    plan: PlanAnswer = "refuse"
    """Before weights are loaded on a card: refuse what the memory forecast says cannot fit, warn, or do not ask."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, nested as in a recipe."""
        return dataclasses.asdict(self)
