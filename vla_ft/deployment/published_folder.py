"""``vla-ft export format=published``: a run's weights as the folder that the policy's published code loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from torch import Tensor

from vla_ft.checkpoints import AVERAGE, find_checkpoint, verify
from vla_ft.deployment.weights import TrainedWeights, build_plain, read_facts
from vla_ft.errors import UserError
from vla_ft.policies.registry import load_policy
from vla_ft.tensor_stream import TensorReader


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """What ``vla-ft export format=published`` takes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """A checkpoint, or a run folder for its latest one."""
    output: str
    """The folder to write."""
    format: Literal["published"] = "published"
    weights: Literal["average", "last"] | None = None
    """The moving average or the last weights; by default the average where the run kept one."""


def export_published(config: PublishConfig) -> str:
    """Write the folder and say what is in it. Raises UserError for a policy without such a form."""
    checkpoint = find_checkpoint(Path(config.checkpoint))
    step = verify(checkpoint)["step"]
    run, description = read_facts(checkpoint)
    policy = load_policy(run.policy)
    write = getattr(policy, "write_published", None)
    if write is None:
        raise UserError(f"format=published is known for policy 'rdt'; {checkpoint} is a run of '{run.policy}'.")
    averaged = TensorReader.exists(checkpoint, AVERAGE)
    if config.weights == "average" and not averaged:
        raise UserError(f"{checkpoint} holds no average: its run had ema=null. Use weights=last.")
    which = config.weights or ("average" if averaged else "last")
    model = build_plain(run, description, "meta")
    with TrainedWeights(checkpoint, model, run, which) as weights:
        folder = write(_each(weights), run.model, Path(config.output))
    return f"{folder}: config.json and model.safetensors, the {which} weights of step {step}"


def _each(weights: TrainedWeights) -> Iterator[tuple[str, Tensor]]:
    yield from weights
