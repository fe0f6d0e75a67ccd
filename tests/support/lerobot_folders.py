"""Policy folders as LeRobot saves them, of either generation, from one of our models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vla_ft.policies.act.lerobot import lerobot_settings
from vla_ft.policies.act.model import Act
from vla_ft.policies.act.names import published_name

Generation = Literal["0.3", "0.6"]
MODES = {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
Statistics = Mapping[str, Mapping[str, Any]]


def statistics(model: Act, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of the state, the action and every camera (ImageNet's, as LeRobot puts them by default)."""
    random = np.random.default_rng(seed)
    found: dict[str, dict[str, np.ndarray]] = {}
    sizes = {"observation.state": model.dimensions.proprio, "action": model.dimensions.action}
    for feature, width in sizes.items():
        low, mean = random.normal(size=width) - 3, random.normal(size=width)
        numbers = {"min": low, "max": low + 2 + random.random(width), "mean": mean, "std": 0.2 + random.random(width)}
        found[feature] = {name: value.astype(np.float32) for name, value in numbers.items()}
    for camera in model.dimensions.cameras:
        pixel = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        found[f"observation.images.{camera}"] = {n: np.float32(v).reshape(3, 1, 1) for n, v in pixel.items()}
    return found


def write_folder(
    folder: Path,
    model: Act,
    numbers: Statistics,
    generation: Generation = "0.6",
    *,
    modes: Mapping[str, str] = MODES,
    size: tuple[int, int] = (32, 32),
    steps: list[dict[str, Any]] | None = None,
    **values: Any,
) -> Path:
    """Write the folder. ``values`` go into ``config.json``, ``steps`` before the normaliser of the newer generation."""
    folder.mkdir(parents=True)
    sizes = model.dimensions
    inputs: dict[str, Any] = {"observation.state": {"type": "STATE", "shape": [sizes.proprio]}}
    inputs |= {f"observation.images.{c}": {"type": "VISUAL", "shape": [3, *size]} for c in sizes.cameras}
    outputs = {"action": {"type": "ACTION", "shape": [sizes.action]}}
    config = {
        "type": "act", "n_obs_steps": 1, "input_features": inputs, "output_features": outputs,
        "normalization_mapping": dict(modes), "n_action_steps": 1, "temporal_ensemble_coeff": None,
        "something_newer": True, **lerobot_settings(model.config), **values,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensors[f"model.{published_name(name, 'lerobot')}"] = value.clone()
    stored = {f"{f}.{n}": torch.from_numpy(v.copy()) for f, entry in numbers.items() for n, v in entry.items()}
    if generation == "0.3":
        for name, value in stored.items():
            feature, _, number = name.rpartition(".")
            parts = ("normalize_targets", "unnormalize_outputs") if feature == "action" else ("normalize_inputs",)
            for part in parts:
                tensors[f"{part}.buffer_{feature.replace('.', '_')}.{number}"] = value.clone()
    else:
        _write_processors(folder, stored, inputs | outputs, modes, steps or [])
    save_file(tensors, folder / "model.safetensors")
    return folder


def _write_processors(
    folder: Path, stored: dict[str, Tensor], features: dict[str, Any], modes: Mapping[str, str], steps: list[Any]
) -> None:
    about = {"eps": 1e-8, "features": features, "norm_map": dict(modes)}
    before = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    after = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    first = [
        *steps,
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "device_processor", "config": {"device": "cpu"}},
        {"registry_name": "normalizer_processor", "config": about, "state_file": before},
    ]
    last = [{"registry_name": "unnormalizer_processor", "config": about, "state_file": after}]
    for name, list_ in (("preprocessor", first), ("postprocessor", last)):
        (folder / f"policy_{name}.json").write_text(json.dumps({"name": f"policy_{name}", "steps": list_}))
    for file in (before, after):
        save_file(stored, folder / file)
