"""What a folder of LeRobot's ``act`` policy holds for one of our models: the inverse of ``lerobot_folder``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_ft.data.normalization import MeanStd
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.act import lerobot
from vla_ft.policies.act.config import Config
from vla_ft.policies.act.names import published_name
from vla_ft.policies.act.pixels import IMAGENET_MEAN, IMAGENET_STD

Generation = Literal["processors", "buffers"]
"""Where statistics lie: in processor files (LeRobot 0.4 and later), or among the weights (up to 0.3.3)."""
Numbers = dict[str, dict[str, Tensor]]
_DEVICE = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
_MODES = {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


@dataclass(frozen=True)
class LeRobotFolder:
    """The files of a policy folder, but for the weights of the network."""

    texts: Mapping[str, dict[str, Any]]
    """JSON by file name."""
    states: Mapping[str, Mapping[str, Tensor]]
    """Small tensor files by name."""
    buffers: Mapping[str, Tensor]
    """What ``model.safetensors`` holds besides the network: the older generation's statistics."""
    config: Config

    def name_of(self, ours: str) -> str | None:
        """The name in ``model.safetensors`` of one of our tensors; None for what that form leaves out."""
        if not lerobot.keeps(ours, self.config):
            return None
        name = published_name(ours, "lerobot")
        return None if name is None else lerobot.WEIGHTS_PREFIX + name


def lerobot_folder(
    config: Config,
    description: DatasetDescription,
    statistics: DatasetStatistics,
    *,
    actions_per_chunk: int,
    ensemble: float | None,
    generation: Generation,
) -> LeRobotFolder:
    """The folder of a model. Our scales (floor and N-1 included) are written as its ``std``: both normalise alike.

    ``ensemble``: coefficient of temporal ensembling, which asks at every step. Raises UserError, naming the settings,
    for a model that LeRobot's form cannot express.
    """
    _refuse_epsilon(config, generation)
    if config.image_size is not None and set(description.cameras.values()) == {config.image_size}:
        config = dataclasses.replace(config, image_size=None)  # the cameras' own: nothing is resized
    settings = lerobot.lerobot_settings(config)
    if config.kl_reduction == "mean":  # LeRobot sums over latent numbers
        settings["kl_weight"] = config.kl_weight / config.latent_dim
    inputs, outputs = _features(description)
    about = {
        "type": "act",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": _modes(description),
        "device": "cpu",
        "use_amp": False,
        "push_to_hub": False,
        **settings,
        "n_action_steps": 1 if ensemble is not None else min(actions_per_chunk, config.chunk_size),
        "pretrained_backbone_weights": None,  # they are in the file; LeRobot would fetch others first
        "temporal_ensemble_coeff": ensemble,
    }
    numbers = _statistics(config, description, statistics)
    texts: dict[str, dict[str, Any]] = {lerobot.CONFIG_FILE: about}
    if generation == "buffers":
        return LeRobotFolder(texts, {}, _buffers(numbers), config)
    before, after = _processors(config, inputs, outputs, _modes(description))
    texts |= {lerobot.PREPROCESSOR_FILE: before, lerobot.POSTPROCESSOR_FILE: after}
    flat = {f"{feature}.{name}": value for feature, entry in numbers.items() for name, value in entry.items()}
    states = {lerobot.PREPROCESSOR_STATE: flat, lerobot.POSTPROCESSOR_STATE: flat}
    return LeRobotFolder(texts, states, {}, config)


def _refuse_epsilon(config: Config, generation: Generation) -> None:
    if generation == "buffers" and config.std_epsilon not in (0.0, lerobot.EPSILON):
        raise UserError(
            f"model.std_epsilon is {config.std_epsilon:g}; LeRobot up to 0.3.3 adds {lerobot.EPSILON:g} always. "
            "Export format=lerobot, which says its own."
        )


def _features(description: DatasetDescription) -> tuple[dict[str, Any], dict[str, Any]]:
    """``input_features`` and ``output_features``; images are (3, H, W) as they come from the camera."""

    def numeric(kind: str, width: int) -> dict[str, Any]:
        return {"type": kind, "shape": [width]}

    inputs: dict[str, Any] = {}
    if description.proprio_dim:
        inputs[lerobot.STATE] = numeric("STATE", description.proprio_dim)
    if description.environment_names:
        inputs[lerobot.ENVIRONMENT] = numeric("ENV", len(description.environment_names))
    for camera, (height, width) in description.cameras.items():
        feature = lerobot.feature_name(IMAGE_PREFIX + camera)
        inputs[feature] = {"type": "VISUAL", "shape": [3, height, width]}
    return inputs, {lerobot.ACTION: numeric("ACTION", description.action_dim)}


def _modes(description: DatasetDescription) -> dict[str, str]:
    return _MODES | ({"ENV": "MEAN_STD"} if description.environment_names else {})


def _statistics(config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> Numbers:
    """Mean and std by LeRobot's features: numbers [D], images [3, 1, 1]."""
    keys = {"proprio": description.proprio_dim, "env_state": len(description.environment_names), "action": 1}
    found: Numbers = {}
    for key in (key for key, width in keys.items() if width):
        ours = MeanStd.of(statistics[key], floor=config.std_floor, unbiased=config.unbiased_std)
        found[lerobot.feature_name(key)] = _pair(ours.mean, ours.scale)
    for camera in description.cameras:
        mean, std = config.pixel_statistics.get(camera, (IMAGENET_MEAN, IMAGENET_STD))
        entry = _pair(np.array(mean), np.array(std))
        found[lerobot.feature_name(IMAGE_PREFIX + camera)] = {n: v.reshape(3, 1, 1) for n, v in entry.items()}
    return found


def _pair(mean: np.ndarray, std: np.ndarray) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in (("mean", mean), ("std", std))}


def _buffers(numbers: Numbers) -> dict[str, Tensor]:
    """The older generation's: what goes in, what a loss compares with, what comes out."""
    inputs, targets, outputs = lerobot.OLD_STATISTICS
    found: dict[str, Tensor] = {}
    for feature, entry in numbers.items():
        for part in (targets, outputs) if feature == lerobot.ACTION else (inputs,):
            found |= {lerobot.old_buffer(part, feature, name): value for name, value in entry.items()}
    return found


def _processors(
    config: Config, inputs: dict[str, Any], outputs: dict[str, Any], modes: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pre- and postprocessor, with the steps that LeRobot's own ACT saves."""

    def scaling(name: str, features: dict[str, Any], file: str) -> dict[str, Any]:
        about = {"eps": config.std_epsilon, "features": features, "norm_map": modes}
        return {"registry_name": name, "config": about, "state_file": file}

    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        _DEVICE,
        scaling("normalizer_processor", inputs | outputs, lerobot.PREPROCESSOR_STATE),
    ]
    after = [scaling("unnormalizer_processor", outputs, lerobot.POSTPROCESSOR_STATE), _DEVICE]
    return (
        {"name": lerobot.PREPROCESSOR_FILE.removesuffix(".json"), "steps": before},
        {"name": lerobot.POSTPROCESSOR_FILE.removesuffix(".json"), "steps": after},
    )
