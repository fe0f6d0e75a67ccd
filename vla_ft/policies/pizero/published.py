"""A checkpoint of open-pi-zero as a policy to run: its file, and the statistics of its training data."""

from __future__ import annotations

import dataclasses
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
from vla_ft.policies.pizero.checkpoint import DESCRIPTION, SETTINGS, file_constants, open_weights
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
    size = int(merged.get("image_size", Config.image_size))
    about = _recorded_description(state.beside.get(DESCRIPTION), widths, path) or _known_robot(widths, path)
    about = dataclasses.replace(about, cameras={camera: (size, size)})
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
        image_size=(size, size),
        names_known=DESCRIPTION in state.beside,
        standardization=None if DESCRIPTION in state.beside else about.name,
    )


def _recorded_description(recorded: object, widths: Mapping[str, int], path: Path) -> DatasetDescription | None:
    """What an export of ours says of its data; None where it says nothing. Raises UserError for a damaged record, and
    where the statistics are of another robot."""
    if recorded is None:
        return None
    try:
        about = DatasetDescription.from_json(json.loads(str(recorded)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"The description recorded in {path} cannot be read ({type(error).__name__}: {error}). Export the weights "
            "again."
        ) from None
    seen, expected = tuple(widths.values()), (about.action_dim, about.proprio_dim)
    if seen != expected:
        raise UserError(
            f"The statistics have {seen[0]} action and {seen[1]} proprio dimensions, {path} was trained on "
            f"{expected[0]} and {expected[1]}. Give the file that was written beside it."
        )
    return about


def _known_robot(widths: Mapping[str, int], path: Path) -> DatasetDescription:
    """Bridge's or Fractal's robot by the widths, for files that say nothing. Raises UserError for any other."""
    action, proprio = widths["action_dim"], widths["proprio_dim"]
    if action != len(ACTION_NAMES) or proprio not in _ROBOTS:
        raise UserError(
            f"{path} does not say which of its {action} actions (with {proprio} numbers of proprioception) are "
            "grippers, which are not scaled; without that it is known for 7 and 7 (Bridge) and 7 and 8 (Fractal) "
            "alone. Export it from its run with `vla-ft export`, which records it."
        )
    standard = STANDARDIZATIONS[_ROBOTS[proprio]]
    return DatasetDescription(
        name=standard.name,
        cameras={},
        action_names=ACTION_NAMES,
        action_units=ACTION_UNITS,
        proprio_names=standard.proprio,
        proprio_units=standard.proprio_units,
        action_kind="end_effector",
        action_mode="delta",
        gripper=GRIPPER,
        fps=standard.fps,
        gripper_dims=(len(ACTION_NAMES) - 1,),  # the published code leaves the last action as it is
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
