"""``vla-ft export``: weights from a checkpoint of any engine, adapters merged: one file, or a policy's published form.

Needs no GPU.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict
from safetensors.torch import save

from vla_ft.checkpoints import AVERAGE, STATISTICS, find_checkpoint, verify, write_json
from vla_ft.config import ExecutionConfig, RunConfig
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.deployment.weights import TrainedWeights, Which, build_plain, read_facts
from vla_ft.errors import UserError, unknown
from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.registry import load_policy
from vla_ft.tensor_stream import Announced, Entry, TensorReader, TensorWriter

OWN = "safetensors"
LEROBOT = ("lerobot", "lerobot03")
_STEM = "model"

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What ``vla-ft export`` takes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """A checkpoint, or a run folder for its latest one."""
    output: str
    """What to write: a file ending in ``.safetensors``; in ``.pt`` where a published form is a torch file; a folder
    where it is one."""
    format: str = OWN
    """``safetensors``: our own names. Or a published form of the policy. ACT: ``lerobot``, a policy folder as LeRobot
    saves it since 0.4, and ``lerobot03``, as up to 0.3.3, with statistics among the weights; pizero:
    ``open-pi-zero``; cogact: ``cogact``; rdt: ``rdt``, the folder that its own code loads."""
    weights: Literal["average", "last"] | None = None
    """The moving average or the last weights; by default the average where the run kept one."""
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep"
    frozen: Literal["keep", "leave_out"] = "keep"
    """``leave_out``: without the parts that were frozen (cogact alone). They are those of the run's ``init.path``:
    whoever loads the file names it as ``init.base``."""
    dataset: str | None = None
    """Of a mixture, whose statistics go into a LeRobot folder."""
    execution: ExecutionConfig | None = None
    """How LeRobot executes the chunks; by default as the run says."""


def export(config: ExportConfig) -> str:
    """Write what is asked for, whole or not at all, and say what is in it. Raises UserError."""
    output = Path(config.output)
    checkpoint = find_checkpoint(Path(config.checkpoint))
    step = verify(checkpoint)["step"]
    run, description = read_facts(checkpoint)
    suffix = _suffix(config, run)
    _refuse_output(config, output, suffix)
    if config.frozen == "leave_out":
        _refuse_incomplete(config, run)
    source = _Source(config, checkpoint, run, description, step, _which(config, checkpoint))
    temporary = output.with_name(f".{output.name}.new")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        temporary.mkdir()
        said = _writer(config)(source, temporary)
        beside = _move_beside(temporary, output) if suffix else ""
        os.replace(temporary / f"{_STEM}{suffix}" if suffix else temporary, output)
    except OSError as error:
        raise UserError(f"{output} could not be written: {error.strerror}. Free space, or name another file.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{output}: {said}{beside}"


def _move_beside(written: Path, output: Path) -> str:
    """Move what belongs to the one file to its side, named after it; what that is, in words."""
    found = {
        path: output.with_name(f"{output.stem}{path.stem.removeprefix(_STEM)}{path.suffix}")
        for path in sorted(written.glob(f"{_STEM}_*.json"))
    }
    for path, place in found.items():
        os.replace(path, place)
    names = ", ".join(str(place) for place in found.values())
    return f"; beside it {names}, which whoever runs it gives as statistics=" if names else ""


@dataclass(frozen=True)
class _Source:
    """What is exported."""

    config: ExportConfig
    checkpoint: Path
    run: RunConfig
    description: DatasetDescription
    step: int
    which: Which

    def weights(self) -> TrainedWeights:
        """The weights, to be read one at a time."""
        return TrainedWeights(self.checkpoint, build_plain(self.run, self.description, "meta"), self.run, self.which)

    def entries(self, weights: TrainedWeights) -> list[Entry]:
        """The tensors to write, in their new type."""
        kept = [Entry(e.name, e.shape, _type(e, self.config.dtype)) for e in weights.entries]
        if self.config.frozen == "keep":
            return kept
        groups = build_plain(self.run, self.description, "meta").parameter_groups()
        frozen = {name for part in self.run.freeze for name, _ in groups[part]}
        return [entry for entry in kept if entry.name not in frozen]

    def statistics(self) -> DatasetStatistics:
        """Of all the data."""
        return DatasetStatistics.load(self.checkpoint / STATISTICS)

    def in_words(self, tensors: int, size: int) -> str:
        """What was written."""
        merged = f", adapters of {', '.join(self.run.lora)} merged" if self.run.lora else ""
        without = f", without {', '.join(self.run.freeze)}" if self.config.frozen == "leave_out" else ""
        return (
            f"{tensors} tensors, {size / 2**20:.1f} MiB, the {self.which} weights of step {self.step}{merged}{without}"
        )


def _writer(config: ExportConfig) -> Callable[[_Source, Path], str]:
    if config.format == OWN:
        return _write_file
    return _write_lerobot if config.format in LEROBOT else _write_published


def _suffix(config: ExportConfig, run: RunConfig) -> str:
    """How the output ends: not at all for a folder. Raises UserError for a form that the policy has not."""
    policy = load_policy(run.policy)
    files, folders = getattr(policy, "EXPORTS", {}), getattr(policy, "EXPORT_FOLDERS", {})
    lerobot = LEROBOT if hasattr(policy, "lerobot_folder") else ()
    if config.format not in (OWN, *files, *folders, *lerobot):
        raise unknown(f"format of policy '{run.policy}' to export", config.format, [OWN, *files, *folders, *lerobot])
    return f".{OWN}" if config.format == OWN else ".pt" if config.format in files else ""


def _which(config: ExportConfig, checkpoint: Path) -> Which:
    averaged = TensorReader.exists(checkpoint, AVERAGE)
    if config.weights == "average" and not averaged:
        raise UserError(f"{checkpoint} holds no average: its run had ema=null. Use weights=last.")
    return config.weights or ("average" if averaged else "last")


def _write_file(source: _Source, folder: Path) -> str:
    """Every tensor under our own names; what was written, in words."""
    run = source.run
    with source.weights() as weights:
        entries = source.entries(weights)
        about = {"format": "pt", "policy": run.policy, "step": str(source.step), "weights": source.which}
        about |= {"start": str(run.init.path)} if source.config.frozen == "leave_out" else {}
        writer = TensorWriter(folder, _STEM, entries, limit=2**63, metadata=about | _constants(run))
        writer.begin()
        for entry in entries:
            writer.write(weights.read(entry.name).to(entry.dtype))
        writer.finish()
    return source.in_words(len(entries), sum(entry.nbytes for entry in entries))


def _write_published(source: _Source, folder: Path) -> str:
    """The form that the policy's publishers read: a torch file, or a folder; what was written, in words."""
    policy, wanted = load_policy(source.run.policy), source.config.format
    files, folders = getattr(policy, "EXPORTS", {}), getattr(policy, "EXPORT_FOLDERS", {})
    with source.weights() as weights:
        tensors = Announced(source.entries(weights), lambda entry: weights.read(entry.name).to(entry.dtype))
        facts = TrainedFacts(
            config=source.run.model,
            description=source.description,
            statistics=source.statistics(),
            step=source.step,
            start=source.run.init.path,
        )
        one_file = wanted in files
        write, place = (files[wanted], folder / f"{_STEM}.pt") if one_file else (folders[wanted], folder)
        count = int(write(place, tensors, facts))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{source.in_words(count, size)}, in {wanted}'s form"


def _constants(run: RunConfig) -> dict[str, str]:
    """What decides the numbers and no tensor shows, as the policy has it."""
    says = getattr(load_policy(run.policy), "constants", None)
    return {} if says is None else {"constants": json.dumps(says(run.model))}


def _write_lerobot(source: _Source, folder: Path) -> str:
    """LeRobot's policy folder; what was written, in words. Weights are float32, as LeRobot holds them."""
    config, run = source.config, source.run
    actions, ensemble = _execution(config.execution or run.execution, run)
    form = load_policy(run.policy).lerobot_folder(  # type: ignore[attr-defined]
        run.model, source.description, source.statistics().of(config.dataset),
        actions_per_chunk=actions, ensemble=ensemble,
        generation="processors" if config.format == "lerobot" else "buffers",
    )  # fmt: skip
    for name, text in form.texts.items():
        write_json(folder / name, text)
    for name, tensors in form.states.items():
        (folder / name).write_bytes(save(dict(tensors)))
    with source.weights() as weights:
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
    said = source.in_words(len(entries), sum(entry.nbytes for entry in entries))
    return f"{said}, for LeRobot's act ({chunks})"


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


def _type(entry: Entry, wanted: str) -> torch.dtype:
    return _TYPES[wanted] if wanted != "keep" and entry.dtype.is_floating_point else entry.dtype


def _refuse_incomplete(config: ExportConfig, run: RunConfig) -> None:
    """Raises UserError where what is left out could not be had elsewhere."""
    if config.format in LEROBOT or not getattr(load_policy(run.policy), "COMPLETES", False):
        raise UserError(f"frozen=leave_out: policy '{run.policy}' cannot complete a file from others. Leave it out.")
    adapted = [part for part in run.freeze if part in run.lora]
    if adapted or not run.freeze:
        told = f"{', '.join(adapted)} had adapters" if adapted else "nothing was frozen (freeze=[])"
        raise UserError(f"frozen=leave_out, but {told} in this run: everything must be written. Leave it out.")
    if run.init.base is not None:
        raise UserError(
            f"frozen=leave_out, but this run began with two files (init.path={run.init.path}, init.base="
            f"{run.init.base}), and whoever loads a file names one. Leave it out."
        )
    if run.init.path is None:
        raise UserError(
            "frozen=leave_out, but this run began with random weights (no init.path): its frozen parts are in no other "
            "file. Leave it out."
        )


def _refuse_output(config: ExportConfig, output: Path, suffix: str) -> None:
    if suffix and output.suffix != suffix:
        raise UserError(f"output={output} must end in {suffix}, which format={config.format} is written in.")
    if not suffix and output.suffix in (".pt", ".pth", ".safetensors"):
        raise UserError(f"output={output} is the name of a file; format={config.format} is a folder. Name one.")
    if config.format in LEROBOT and config.dtype not in ("keep", "fp32"):
        raise UserError(f"dtype={config.dtype}: LeRobot's folder holds fp32. Leave dtype out.")
    beside = sorted(output.parent.glob(f"{glob.escape(output.stem)}_statistics*.json")) if suffix == ".pt" else []
    for there in (*([output] if output.exists() else []), *beside):
        raise UserError(f"output={output}: {there} exists already. Remove it, or name another one.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")
