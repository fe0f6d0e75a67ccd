"""CogACT's published run folder: ``config.json``, ``dataset_statistics.json`` and ``checkpoints/NAME.pt``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_ft.data.published_statistics import to_openvla
from vla_ft.errors import UserError
from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.cogact.checkpoint import CHECKPOINTS, START, find_file
from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.layouts import PARTS, published_name

CONFIG, STATISTICS = "config.json", "dataset_statistics.json"
BASE_VLM = "prism-dinosiglip-224px+7b"
"""The one vision-language model that CogACT was published with."""


def write_published(folder: Path, tensors: Iterable[tuple[str, Tensor]], facts: TrainedFacts) -> int:
    """Write a checkpoint as the published ``load_vla`` reads it, into an empty folder. Returns the number of tensors.

    Parts may be left out: the file then says what weights they are of. Holds all weights in memory. Raises UserError
    when the disk is full.
    """
    assert isinstance(facts.config, Config)
    model: dict[str, dict[str, Tensor]] = {}
    count = 0
    for name, tensor in tensors:
        part, _, rest = published_name(name).partition(".")
        model.setdefault(part, {})[rest] = tensor
        count += 1
    file = folder / CHECKPOINTS / f"step-{facts.step:06d}.pt"
    names = list(facts.statistics.parts) or [facts.description.name]
    statistics = to_openvla(facts.statistics, dict.fromkeys(names, facts.description))
    try:
        file.parent.mkdir()
        (folder / CONFIG).write_text(json.dumps(published_config(facts.config, facts.description.action_dim), indent=2))
        (folder / STATISTICS).write_text(json.dumps(statistics, indent=2))
        torch.save({"model": model, **left_out(model, facts.start)}, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise UserError(f"{folder} could not be written: {error}. Free space, or name another folder.") from None
    return count


def left_out(model: Mapping[str, Any], start: str | None) -> dict[str, str]:
    """What a file says beside its sub-dictionaries where some are missing: the weights that those are of."""
    whole = {published_name(beginning).partition(".")[0] for beginning in PARTS.values()}
    return {} if start is None or model.keys() == whole else {START: start}


def published_config(config: Config, action_dim: int) -> dict[str, Any]:
    """What the published configuration says of a model. Its loader reads ``vla.base_vlm`` alone."""
    return {
        "vla": {"base_vlm": BASE_VLM if config.size == "7b" else config.size},
        "action_model_type": config.action_model_type,
        "future_action_window_size": config.future_action_window_size,
        "past_action_window_size": 0,
        "action_dim": action_dim,
        "repeated_diffusion_steps": config.repeated_diffusion_steps,
        "use_ema": False,
    }


def run_folder(path: Path) -> Path:
    """The folder that holds configuration and statistics, of a run's folder or of the file in it. Raises UserError."""
    file = find_file(path)
    folder = file if file.is_dir() else file.parent.parent if file.parent.name == CHECKPOINTS else file.parent
    if not (folder / STATISTICS).is_file():
        raise UserError(
            f"There is no {STATISTICS} in {folder}: without it actions cannot be brought to robot units. Give a "
            "published run's folder, or `vla-ft export format=cogact` of a run here."
        )
    return folder


def read_statistics(path: Path) -> dict[str, Any]:
    """``dataset_statistics.json`` of a run: dataset name -> action, proprio and counts. Raises UserError."""
    file = run_folder(path) / STATISTICS
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}). Fetch or export it again.") from None
    if not isinstance(data, dict) or not data or not all(isinstance(v, dict) and "action" in v for v in data.values()):
        raise UserError(f"{file} holds no statistics by dataset, each with 'action'. Fetch or export it again.")
    return data
