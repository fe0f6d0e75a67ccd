"""π0 (Black et al. 2024) in open-pi-zero's form: PaliGemma, and an expert that flows from noise to actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.standardize.base import ACTION_NAMES, POSE_QUATERNION
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.pizero.checkpoint import load_weights
from vla_ft.policies.pizero.config import STAND_IN, Config
from vla_ft.policies.pizero.layouts import constants
from vla_ft.policies.pizero.model import Dimensions, PiZero
from vla_ft.policies.pizero.processing import PiZeroProcessor
from vla_ft.policies.pizero.publish import write_run
from vla_ft.policies.pizero.published import open_published_file
from vla_ft.policies.pizero.translate import translate
from vla_ft.policies.pizero.vocabulary import foreign_keys

__all__ = [
    "EXPORTS",
    "FOREIGN_KEYS",
    "TRANSLATORS",
    "Config",
    "adapt",
    "build_model",
    "build_processor",
    "constants",
    "load_weights",
    "open_published_file",
    "remarks",
    "suggest",
    "without_files",
]

TRANSLATORS = {"open-pi-zero": translate}
"""Published code whose training files become recipes."""
FOREIGN_KEYS = foreign_keys()
"""Its keys, for whoever gives them to ``vla-ft train``."""
EXPORTS = {"open-pi-zero": write_run}
"""Published layouts that ``vla-ft export`` writes."""

_OTHER_ACTIONS = (
    "whether the start fits: Bridge's weights were trained on movements of the end effector, this data's actions are "
    "others (init.path=paligemma-3b-pt-224 init.layout=paligemma, without the two periods, starts with fresh experts)"
)
_TITLES = {"action": "Action", "vlm": "VLM"}


def build_model(config: Config, description: DatasetDescription) -> PiZero:
    """A model with fresh weights for a dataset's dimensions. Raises UserError where they cannot fit."""
    check_dataset(config, description)
    return PiZero(config, Dimensions(action=description.action_dim, proprio=description.proprio_dim))


def build_processor(config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> PiZeroProcessor:
    """The processor of the same configuration. Raises UserError where the dataset does not fit it."""
    check_dataset(config, description)
    return PiZeroProcessor(config, description, statistics)


def check_dataset(config: Config, description: DatasetDescription) -> None:
    """Raise UserError unless a dataset has the cameras and dimensions that the configuration is for."""
    name, cameras = description.name, description.cameras
    if len(cameras) != 1:
        seen = ", ".join(cameras) or "none"
        one = next(iter(cameras), "NAME")
        raise UserError(
            f"Dataset '{name}' has {len(cameras)} cameras ({seen}), π0 sees one. Choose it with data.cameras=[{one}]."
        )
    (camera, (height, width)), size = next(iter(cameras.items())), config.image_size
    if (height, width) != (size, size):
        raise UserError(
            f"Camera '{camera}' of dataset '{name}' is {height}x{width}, this model sees {size}x{size}. "
            f"Set data.image_size=[{size},{size}]."
        )
    if description.proprio_dim == 0:
        raise UserError(f"Dataset '{name}' records no proprioception, which π0 needs. Name its columns: data.proprio.")
    widths = {
        "action": (config.action_dim, description.action_dim),
        "proprio": (config.proprio_dim, description.proprio_dim),
    }
    for feature, (expected, seen_width) in widths.items():
        if expected is not None and expected != seen_width:
            hint = " Bridge has 7 and Fractal 8." if feature == "proprio" else ""
            raise UserError(
                f"Dataset '{name}' has {seen_width} {feature} dimensions, this recipe is for {expected}.{hint} "
                f"Use the recipe of your robot, or set model.{feature}_dim={seen_width} and start without the weights "
                "that were made for another."
            )


def suggest(description: DatasetDescription, statistics: DatasetStatistics) -> dict[str, Any]:
    """Model settings for a dataset: its widths."""
    return {"action_dim": description.action_dim, "proprio_dim": description.proprio_dim}


def adapt(base: Mapping[str, Any], description: DatasetDescription) -> tuple[dict[str, Any], list[str]]:
    """A recipe for a dataset: with the start that fits its widths, and what to know of it.

    Published weights are for 7 actions and 7 or 8 numbers of proprioception. Any other robot starts from PaliGemma,
    with the periods of open-pi-zero's training files: 10000 belong to its weights.
    """
    model, init = dict(base.get("model") or {}), dict(base.get("init") or {})
    widths = (description.action_dim, description.proprio_dim)
    if init.get("layout") != "open-pi-zero":
        return dict(base), []
    if widths == (model.get("action_dim"), model.get("proprio_dim")):
        strange = description.action_kind == "joint" or description.action_mode == "absolute"
        return dict(base), [_OTHER_ACTIONS] if strange else []
    if description.action_dim == len(ACTION_NAMES) and description.proprio_names == POSE_QUATERNION:
        return {**base, "init": {**init, "path": "pizero-fractal"}}, []
    for name in ("expert_rope_theta", "time_period"):
        model.pop(name, None)
    start = {"path": "paligemma-3b-pt-224", "layout": "paligemma"}
    note = (
        f"open-pi-zero's weights are for 7 actions and 7 or 8 numbers of proprioception, this robot has {widths[0]} "
        f"and {widths[1]}: the run starts from PaliGemma with fresh experts, which needs more data and steps"
    )
    return {**base, "model": model, "init": start}, [note]


def without_files(config: Config) -> Config:
    """The same shapes without a tokenizer's files."""
    return dataclasses.replace(config, tokenizer=STAND_IN)


def remarks(config: Config, trained: Mapping[str, int]) -> list[str]:
    """What the banner says of a run: the counts as open-pi-zero logs them, and what is known not to work.

    ``trained``: trained weights by part.
    """
    lines = [
        f"Number of trained parameters ({_TITLES[part]}): {count / 1e9:.3f}B"
        for part, count in trained.items()
        if part in _TITLES and count
    ]
    if not trained.get("vlm"):
        lines.append(
            "The vision-language model is frozen: open-pi-zero's authors report that training the action expert alone "
            "did not work. It serves to test a pipeline, or weights that were trained for robots before."
        )
    if config.tokenizer == STAND_IN:
        lines.append(
            "model.tokenizer=stand-in: instructions become checksums of words; what is learned knows no language."
        )
    return lines
