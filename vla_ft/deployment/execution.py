"""How chunks are executed, from a configuration."""

from __future__ import annotations

from vla_ft.config import ExecutionConfig
from vla_ft.deployment.temporal_aggregation import ChunkExecution, OpenLoop, TemporalAggregation


def chunk_execution(config: ExecutionConfig, horizon: int) -> ChunkExecution:
    """The execution that ``config`` asks for, of chunks of ``horizon`` actions."""
    if not config.temporal_ensemble:
        return OpenLoop(horizon if config.steps is None else config.steps)
    coefficient = 0.0 if config.ensemble_weights == "uniform" else config.ensemble_coefficient
    return TemporalAggregation(coefficient, config.ensemble_window)


def describe(config: ExecutionConfig) -> str:
    """An execution in words."""
    if not config.temporal_ensemble:
        return "open loop, " + (f"{config.steps} actions" if config.steps else "all actions") + " of a chunk"
    window = f"the last {config.ensemble_window}" if config.ensemble_window else "all"
    weights = f"exponential weights, coefficient {config.ensemble_coefficient:g}"
    return f"temporal ensemble of {window} chunks, " + (
        "uniform weights" if config.ensemble_weights == "uniform" else weights
    )
