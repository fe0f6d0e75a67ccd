"""``vla-ft export``: one file of weights, or LeRobot's policy folder, from a checkpoint of any engine, adapters merged.

Needs no GPU.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict
from safetensors.torch import save

from vla_ft.checkpoints import AVERAGE, STATISTICS, find_checkpoint, verify, write_json
from vla_ft.config import ExecutionConfig, RunConfig
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.deployment.weights import TrainedWeights, Which, build_plain, read_facts
from vla_ft.errors import UserError
from vla_ft.policies.registry import load_policy
from vla_ft.tensor_stream import Entry, TensorReader, TensorWriter

_STEM = "model"

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What ``vla-ft export`` takes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """A checkpoint, or a run folder for its latest one."""
    output: str
    """What to write: a file ending in ``.safetensors``, or a folder for LeRobot."""
    format: Literal["safetensors", "lerobot", "lerobot03"] = "safetensors"
    """``safetensors``: our own names. ``lerobot``: a policy folder as LeRobot saves it since 0.4; ``lerobot03``: as up
    to 0.3.3, with statistics among the weights."""
    weights: Literal["average", "last"] | None = None
    """The moving average or the last weights; by default the average where the run kept one."""
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep"
    dataset: str | None = None
    """Of a mixture, whose statistics go into a LeRobot folder."""
    execution: ExecutionConfig | None = None
    """How LeRobot executes the chunks; by default as the run says."""


def export(config: ExportConfig) -> str:
    """Write what is asked for and say what is in it. Raises UserError."""
    output = Path(config.output)
    folder = config.format != "safetensors"
    _refuse_output(config, output)
    checkpoint = find_checkpoint(Path(config.checkpoint))
    step = verify(checkpoint)["step"]
    which = _which(config, checkpoint)
    temporary = output.with_name(f".{output.name}.new")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        temporary.mkdir()
        said = (
            _write_folder(config, checkpoint, temporary, which)
            if folder
            else _write_file(config, checkpoint, temporary, which, step)
        )
        os.replace(temporary if folder else temporary / f"{_STEM}.safetensors", output)
    except OSError as error:
        raise UserError(f"{output} could not be written: {error.strerror}. Free space, or name another file.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{output}: {said.format(which=which, step=step)}"


def _which(config: ExportConfig, checkpoint: Path) -> Which:
    averaged = TensorReader.exists(checkpoint, AVERAGE)
    if config.weights == "average" and not averaged:
        raise UserError(f"{checkpoint} holds no average: its run had ema=null. Use weights=last.")
    return config.weights or ("average" if averaged else "last")


def _write_file(config: ExportConfig, checkpoint: Path, folder: Path, which: Which, step: int) -> str:
    """Every tensor under our own names; what was written, in words."""
    run, description = read_facts(checkpoint)
    with TrainedWeights(checkpoint, build_plain(run, description, "meta"), run, which) as weights:
        entries = [Entry(e.name, e.shape, _type(e, config.dtype)) for e in weights.entries]
        about = {"format": "pt", "policy": run.policy, "step": str(step), "weights": which}
        writer = TensorWriter(folder, _STEM, entries, limit=2**63, metadata=about)
        writer.begin()
        for entry in entries:
            writer.write(weights.read(entry.name).to(entry.dtype))
        writer.finish()
    return _in_words(run, entries)


def _write_folder(config: ExportConfig, checkpoint: Path, folder: Path, which: Which) -> str:
    """LeRobot's policy folder; what was written, in words. Weights are float32, as LeRobot holds them."""
    run, description = read_facts(checkpoint)
    policy = load_policy(run.policy)
    if not hasattr(policy, "lerobot_folder"):
        raise UserError(f"format={config.format} writes policy 'act' alone, this is '{run.policy}'.")
    actions, ensemble = _execution(config.execution or run.execution, run)
    form = policy.lerobot_folder(
        run.model, description, DatasetStatistics.load(checkpoint / STATISTICS).of(config.dataset),
        actions_per_chunk=actions, ensemble=ensemble,
        generation="processors" if config.format == "lerobot" else "buffers",
    )  # fmt: skip
    for name, text in form.texts.items():
        write_json(folder / name, text)
    for name, tensors in form.states.items():
        (folder / name).write_bytes(save(dict(tensors)))
    with TrainedWeights(checkpoint, build_plain(run, description, "meta"), run, which) as weights:
        kept = [(e, name) for e in weights.entries if (name := form.name_of(e.name)) is not None]
        entries = [Entry(name, e.shape, torch.float32) for e, name in kept]
        entries += [Entry(name, tuple(value.shape), value.dtype) for name, value in form.buffers.items()]
        writer = TensorWriter(folder, _STEM, entries, limit=2**63, metadata={"format": "pt"})
        for entry, _ in kept:
            writer.write(weights.read(entry.name).float())
        for value in form.buffers.values():
            writer.write(value)
        writer.finish()
    chunks = f"ensemble {ensemble:g}" if ensemble is not None else f"{actions} actions of a chunk"
    return f"{_in_words(run, entries)}, for LeRobot's act ({chunks})"


def _execution(execution: ExecutionConfig, run: RunConfig) -> tuple[int, float | None]:
    """LeRobot's ``n_action_steps`` and ``temporal_ensemble_coeff``. Raises UserError for what it cannot do."""
    chunk = int(run.model.chunk_size)
    if not execution.temporal_ensemble:
        return min(execution.steps or chunk, chunk), None
    window = execution.ensemble_window
    if window is not None and window < chunk:
        raise UserError(
            f"LeRobot averages every chunk that reaches a step, it cannot express execution.ensemble_window={window} "
            f"(model.chunk_size is {chunk}). Say execution.temporal_ensemble=true without a window, or "
            "execution.steps=N for open loop."
        )
    return 1, 0.0 if execution.ensemble_weights == "uniform" else execution.ensemble_coefficient


def _in_words(run: RunConfig, entries: Sequence[Entry]) -> str:
    """``{which}`` and ``{step}`` are left to fill in."""
    size = sum(entry.nbytes for entry in entries)
    merged = f", adapters of {', '.join(run.lora)} merged" if run.lora else ""
    return f"{len(entries)} tensors, {size / 2**20:.1f} MiB, the {{which}} weights of step {{step}}{merged}"


def _type(entry: Entry, wanted: str) -> torch.dtype:
    return _TYPES[wanted] if wanted != "keep" and entry.dtype.is_floating_point else entry.dtype


def _refuse_output(config: ExportConfig, output: Path) -> None:
    if config.format == "safetensors" and output.suffix != ".safetensors":
        raise UserError(f"output={output} must end in .safetensors, the one format that is written.")
    if config.format != "safetensors" and config.dtype not in ("keep", "fp32"):
        raise UserError(f"dtype={config.dtype}: LeRobot's folder holds fp32. Leave dtype out.")
    if output.exists():
        raise UserError(f"output={output} exists already. Remove it, or name another one.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")
