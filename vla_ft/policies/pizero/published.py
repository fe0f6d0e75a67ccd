"""A checkpoint of open-pi-zero as a policy to run: its file, and the statistics of its training data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_ft.data.published_statistics import from_octo
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.standardize.base import (
    ACTION_NAMES,
    ACTION_UNITS,
    GRIPPER,
    POSE_EULER,
    POSE_QUATERNION,
    STANDARDIZATIONS,
)
from vla_ft.errors import UserError
from vla_ft.policies.pizero.checkpoint import SETTINGS, file_constants, open_weights
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.layouts import is_open_pi_zero
from vla_ft.policies.published import Published

_ROBOTS = {len(POSE_EULER): "bridge_dataset", len(POSE_QUATERNION): "fractal20220817_data"}
"""Width of proprioception -> the dataset that the published checkpoints of that width are of."""
_TOKENIZER = "paligemma-3b-pt-224"


def open_published_file(
    path: Path, statistics: Path | None, camera: str, settings: Mapping[str, Any]
) -> Published | None:
    """The policy of a ``step*.pt``; None for a file without open-pi-zero's weights.

    ``statistics``: the JSON file of its training data (``dataset_statistics_....json``). ``camera``: what the one
    camera is called here. ``settings``: of ``model``, where the file does not say; constants that it does not know must
    be among them. Raises UserError for what is missing.
    """
    state = open_weights(path)
    if not is_open_pi_zero(state):
        return None
    if statistics is None:
        raise UserError(
            f"{path} holds weights alone. Give statistics=..., the JSON file of its training data (with p01 and "
            "p99; open-pi-zero keeps it beside its dataset): without it no action has a size."
        )
    constants = file_constants(state.beside, str(path)) or {}
    known = {**_settings(state.beside.get(SETTINGS), path), **constants}
    read = _read(statistics)
    if not constants and {"expert_rope_theta", "time_period"} <= settings.keys():
        known["constants_confirmed"] = True  # said by whoever runs it
    widths = {f"{feature}_dim": _width(read, feature, statistics) for feature in ("action", "proprio")}
    merged = {"tokenizer": _TOKENIZER, **known, **settings, **widths}
    about = _description(widths, camera, int(merged.get("image_size", Config.image_size)))
    names = {"action": about.action_names, "proprio": about.proprio_names}
    return Published(
        policy="pizero",
        settings=merged,
        description=about,
        statistics=from_octo(read, names),
        folder=path,
        layout="open-pi-zero",
        actions_per_chunk=int(merged.get("horizon", Config.horizon)),
        mapped=True,
    )


def _description(widths: Mapping[str, int], camera: str, size: int) -> DatasetDescription:
    """Bridge's or Fractal's robot by the widths; numbered dimensions for any other."""
    dataset = _ROBOTS.get(widths["proprio_dim"]) if widths["action_dim"] == len(ACTION_NAMES) else None
    if dataset is None:
        action = tuple(f"action_{i}" for i in range(widths["action_dim"]))
        proprio = tuple(f"proprio_{i}" for i in range(widths["proprio_dim"]))
        units, state_units, fps = ("",) * len(action), ("",) * len(proprio), 0.0
    else:
        standard = STANDARDIZATIONS[dataset]
        action, proprio, units = ACTION_NAMES, standard.proprio, ACTION_UNITS
        state_units, fps = standard.proprio_units, standard.fps
    return DatasetDescription(
        name=dataset or "published",
        cameras={camera: (size, size)},
        action_names=action,
        action_units=units,
        proprio_names=proprio,
        proprio_units=state_units,
        action_kind="end_effector",
        action_mode="delta",
        gripper=GRIPPER,
        fps=fps,
        gripper_dims=(len(action) - 1,),  # the published code leaves the last action as it is
    )


def _settings(recorded: object, path: Path) -> dict[str, Any]:
    """Those that an export of ours recorded; none in a file of open-pi-zero's own, which has the published sizes."""
    if recorded is None:
        return {}
    try:
        return dict(json.loads(str(recorded)))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"The settings recorded in {path} cannot be read ({error}). Export the weights again."
        ) from None


def _width(read: Mapping[str, Any], feature: str, path: Path) -> int:
    try:
        return len(read[feature]["p01"])
    except (KeyError, TypeError):
        raise UserError(
            f"{path} holds no statistics of {feature} with p01 and p99. Give the JSON file that open-pi-zero wrote for "
            "the training data."
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no file of statistics ({error}). Give open-pi-zero's JSON file.") from None
    return read if isinstance(read, dict) else {}
