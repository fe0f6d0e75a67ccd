"""``vla-ft export``: one file of weights from a checkpoint of any engine, adapters merged. Needs no GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict

from vla_ft.checkpoints import AVERAGE, find_checkpoint, verify
from vla_ft.deployment.weights import TrainedWeights, build_plain, read_facts
from vla_ft.errors import UserError
from vla_ft.tensor_stream import Entry, TensorReader, TensorWriter

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What ``vla-ft export`` takes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """A checkpoint, or a run folder for its latest one."""
    output: str
    """The file to write, ending in ``.safetensors``."""
    weights: Literal["average", "last"] | None = None
    """The moving average or the last weights; by default the average where the run kept one."""
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep"


def export(config: ExportConfig) -> str:
    """Write the file and say what is in it. Raises UserError."""
    output = Path(config.output)
    _refuse_output(output)
    checkpoint = find_checkpoint(Path(config.checkpoint))
    step = verify(checkpoint)["step"]
    averaged = TensorReader.exists(checkpoint, AVERAGE)
    if config.weights == "average" and not averaged:
        raise UserError(f"{checkpoint} holds no average: its run had ema=null. Use weights=last.")
    which = config.weights or ("average" if averaged else "last")
    run, description = read_facts(checkpoint)
    model = build_plain(run, description, "meta")
    temporary = output.with_name(f".{output.stem}.new")
    try:
        with TrainedWeights(checkpoint, model, run, which) as weights:
            entries = [Entry(e.name, e.shape, _type(e, config.dtype)) for e in weights.entries]
            about = {"format": "pt", "policy": run.policy, "step": str(step), "weights": which}
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
    merged = f", adapters of {', '.join(run.lora)} merged" if run.lora else ""
    return f"{output}: {len(entries)} tensors, {size / 2**20:.1f} MiB, the {which} weights of step {step}{merged}"


def _type(entry: Entry, wanted: str) -> torch.dtype:
    return _TYPES[wanted] if wanted != "keep" and entry.dtype.is_floating_point else entry.dtype


def _refuse_output(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise UserError(f"output={output} must end in .safetensors, the one format that is written.")
    if output.exists():
        raise UserError(f"output={output} exists already. Remove it, or name another file.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")
