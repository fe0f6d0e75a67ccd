"""The small sections: how weights start and which are trained, what a run writes, how chunks are executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from vla_ft.config.values import OFF, STRICT, Fraction, NotNegative
from vla_ft.data.opening import Positive
from vla_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Where the weights start. Without a path they are fresh, and the banner says so."""

    __pydantic_config__ = STRICT

    path: str | None = None
    """A file or folder, or the name of weights that ``vla-ft fetch`` brought."""
    layout: str = "auto"

    def __post_init__(self) -> None:
        if self.path is None and self.layout != "auto":
            raise UserError(f"init.layout={self.layout} describes a file, and init.path names none. Give init.path=...")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021) in the linear layers of one named part; its own weights are frozen."""

    __pydantic_config__ = STRICT

    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Numerator of the scale ``alpha / rank``; null means ``rank``, a scale of one."""
    dropout: Fraction = 0.0
    layers: str = ".*"
    """Regular expression that a linear layer's name inside the model must match to the end."""


@dataclass(frozen=True, kw_only=True)
class FrozenFeaturesConfig:
    """Frozen parts whose outputs are computed once, kept on disk and read instead."""

    __pydantic_config__ = STRICT

    parts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Parts that are frozen as well (``freeze``), such as ``[backbone]``."""
    path: str | None = None
    """Folder of the features, one sub-folder a part; runs may share it. null means ``<output>/features``."""
    dtype: Literal["computed", "bfloat16", "float16"] = "computed"
    """How they are stored: as computed, or rounded to two bytes a number, which changes the numbers of the run."""
    shard_mib: Annotated[float, Field(gt=0)] = 64.0
    """Size of a file in MiB: what a killed computation has to do again."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a checkpoint is written and how many are kept."""

    __pydantic_config__ = STRICT

    every: Positive = 500
    keep_last: Positive = 3


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How often, and on how many held-out windows (evenly spaced, always the same)."""

    __pydantic_config__ = STRICT

    every: Positive = 500
    samples: Positive = 256
    thresholds: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """For each, the share of predicted steps whose every dimension is nearer than this, normalised."""
    training_samples: NotNegative = 0
    """On how many windows of *training* episodes besides: ``training_sample/...`` beside ``validation/...`` shows what
    is learned by heart."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """TensorBoard and metrics.jsonl are always written; W&B when asked."""

    __pydantic_config__ = STRICT

    every: Positive = 10
    updates_per_epoch: Positive | None = None
    """What is logged as an epoch; null for a pass over the training windows, which need not end with an update."""
    wandb: Annotated[Literal["off", "offline", "online"], OFF] = "off"
    project: str = "vla_ft"
    name: str | None = None
    tags: tuple[str, ...] = ()
    artifacts: bool = False
    """Every checkpoint becomes a W&B artifact: a copy of its folder, uploaded at once or by ``wandb sync``."""

    def __post_init__(self) -> None:
        if self.artifacts and self.wandb == "off":
            raise UserError("logging.artifacts=true needs W&B, which is off. Set logging.wandb=online or offline.")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a robot executes the chunks that a policy predicts. Training does not depend on it; a run keeps it with its
    checkpoints, for whoever drives the policy."""

    __pydantic_config__ = STRICT

    steps: Positive | None = None
    """Actions of a chunk that are executed before the next one is asked for; null means all of them."""
    temporal_ensemble: bool = False
    """Ask at every step instead, and average all predictions of that step (Zhao et al., 2023, section IV-B)."""
    ensemble_window: Positive | None = None
    """Average over the newest so many chunks; null means every chunk that reaches the step."""
    ensemble_weights: Literal["exponential", "uniform"] = "exponential"
    """``exponential``: exp(-coefficient * i), i = 0 the oldest prediction, as published; ``uniform``: all alike."""
    ensemble_coefficient: float = 0.01
    """Of the exponential weights; below zero the newest prediction weighs most."""

    def __post_init__(self) -> None:
        if self.temporal_ensemble and self.steps not in (None, 1):
            raise UserError(
                f"execution.steps={self.steps} executes several actions of one chunk, execution.temporal_ensemble=true "
                "asks for a chunk at every step. Leave one of them out."
            )
        if self.ensemble_window is not None and not self.temporal_ensemble:
            raise UserError(
                "execution.ensemble_window is of the average: set execution.temporal_ensemble=true as well."
            )
