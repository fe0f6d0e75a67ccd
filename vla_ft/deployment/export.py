"""``vla-ft export``: one file of weights from a checkpoint of any engine, adapters merged. Needs no GPU."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict

from vla_ft.checkpoints import AVERAGE, STATISTICS, find_checkpoint, verify
from vla_ft.config import RunConfig
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.deployment.weights import TrainedWeights, Which, build_plain, read_facts
from vla_ft.errors import UserError, unknown
from vla_ft.policies.base import Model, TrainedFacts
from vla_ft.policies.registry import load_policy
from vla_ft.tensor_stream import Entry, TensorReader, TensorWriter

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What ``vla-ft export`` takes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """A checkpoint, or a run folder for its latest one."""
    output: str
    """The file to write, ending in ``.safetensors``; in ``.pt`` for a published layout that is a torch file; a folder
    for one that is a folder."""
    layout: str = "vla_ft"
    """Our own names, or a published layout of the policy, such as pizero's ``open-pi-zero`` or ``cogact``."""
    weights: Literal["average", "last"] | None = None
    """The moving average or the last weights; by default the average where the run kept one."""
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep"


def export(config: ExportConfig) -> str:
    """Write the file and say what is in it. Raises UserError."""
    output = Path(config.output)
    own = config.layout == "vla_ft"
    checkpoint = find_checkpoint(Path(config.checkpoint))
    step = verify(checkpoint)["step"]
    averaged = TensorReader.exists(checkpoint, AVERAGE)
    if config.weights == "average" and not averaged:
        raise UserError(f"{checkpoint} holds no average: its run had ema=null. Use weights=last.")
    which = config.weights or ("average" if averaged else "last")
    run, description = read_facts(checkpoint)
    _refuse_output(output, ".safetensors" if own else _published_suffix(config, run))
    model = build_plain(run, description, "meta")
    merged = f", adapters of {', '.join(run.lora)} merged" if run.lora else ""
    source = f"the {which} weights of step {step}{merged}"
    if not own:
        statistics = DatasetStatistics.load(checkpoint / STATISTICS)
        facts = TrainedFacts(config=run.model, description=description, statistics=statistics, step=step)
        count = _write_published(config, checkpoint, model, run, which, facts)
        files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        return f"{output}: {count} tensors in {config.layout}'s layout, {size / 2**20:.1f} MiB, {source}"
    temporary = output.with_name(f".{output.stem}.new")
    try:
        with TrainedWeights(checkpoint, model, run, which) as weights:
            entries = [Entry(e.name, e.shape, _type(e, config.dtype)) for e in weights.entries]
            about = {"format": "pt", "policy": run.policy, "step": str(step), "weights": which, **_constants(run)}
            writer = TensorWriter(temporary.parent, temporary.name, entries, limit=2**63, metadata=about)
            writer.begin()
            for entry in entries:
                writer.write(weights.read(entry.name).to(entry.dtype))
            writer.finish()
        os.replace(temporary.with_name(f"{temporary.name}.safetensors"), output)
    except OSError as error:
        raise UserError(f"{output} could not be written: {error.strerror}. Free space, or name another file.") from None
    finally:
        temporary.with_name(f"{temporary.name}.safetensors").unlink(missing_ok=True)
    size = sum(entry.nbytes for entry in entries)
    return f"{output}: {len(entries)} tensors, {size / 2**20:.1f} MiB, {source}"


def _published_suffix(config: ExportConfig, run: RunConfig) -> str:
    """How the output of a published layout ends: not at all for a folder. Raises UserError for one that is unknown."""
    policy = load_policy(run.policy)
    files, folders = getattr(policy, "EXPORTS", {}), getattr(policy, "EXPORT_FOLDERS", {})
    if config.layout not in (*files, *folders):
        raise unknown(f"layout of policy '{run.policy}' to export", config.layout, ["vla_ft", *files, *folders])
    return ".pt" if config.layout in files else ""


def _write_published(
    config: ExportConfig, checkpoint: Path, model: Model, run: RunConfig, which: Which, facts: TrainedFacts
) -> int:
    """Write the policy's published layout, whole or not at all. Returns the number of tensors."""
    policy, output = load_policy(run.policy), Path(config.output)
    files, folders = getattr(policy, "EXPORTS", {}), getattr(policy, "EXPORT_FOLDERS", {})
    with TrainedWeights(checkpoint, model, run, which) as weights:
        tensors = ((e.name, weights.read(e.name).to(_type(e, config.dtype))) for e in weights.entries)
        if config.layout in files:
            return int(files[config.layout](output, tensors, run.model, facts.step))
        unfinished = output.with_name(f".{output.name}.new")
        try:
            unfinished.mkdir()
            count = int(folders[config.layout](unfinished, tensors, facts))
            os.replace(unfinished, output)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return count


def _constants(run: RunConfig) -> dict[str, str]:
    """What decides the numbers and no tensor shows, as the policy has it."""
    says = getattr(load_policy(run.policy), "constants", None)
    return {} if says is None else {"constants": json.dumps(says(run.model))}


def _type(entry: Entry, wanted: str) -> torch.dtype:
    return _TYPES[wanted] if wanted != "keep" and entry.dtype.is_floating_point else entry.dtype


def _refuse_output(output: Path, suffix: str) -> None:
    if suffix and output.suffix != suffix:
        raise UserError(f"output={output} must end in {suffix}, which this layout is written in.")
    if not suffix and output.suffix in (".pt", ".pth", ".safetensors"):
        raise UserError(f"output={output} is the name of a file; this layout is a folder. Name one.")
    if output.exists():
        raise UserError(f"output={output} exists already. Remove it, or name another file.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")
