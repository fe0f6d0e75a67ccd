"""A dataset's description from a file that anyone may have edited."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError

_CHOICES = {"action_kind": ("joint", "end_effector", "unknown"), "action_mode": ("absolute", "delta", "unknown")}
_NAMES = ("action_names", "action_units", "proprio_names", "proprio_units")


def load_described(path: Path) -> tuple[dict[str, Any], DatasetDescription]:
    """A JSON object and its member ``description``. Raises UserError when a type or a value is impossible."""
    try:
        content = json.loads(path.read_text())
        description = DatasetDescription.from_json(content["description"])
        _check(description)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path} describes no dataset ({type(error).__name__}: {error}). Restore it, or write the set again."
        ) from error
    return content, description


def _check(description: DatasetDescription) -> None:
    for name in _NAMES:
        values = getattr(description, name)
        if not isinstance(values, tuple) or not all(isinstance(v, str) for v in values):
            raise ValueError(f"{name} is {values!r}, expected a list of names")
    for name, choices in _CHOICES.items():
        if getattr(description, name) not in choices:
            raise ValueError(f"{name} is {getattr(description, name)!r}, expected {' or '.join(choices)}")
    if not isinstance(description.name, str) or not isinstance(description.gripper, str):
        raise ValueError("name or gripper is no text")
    if isinstance(description.fps, bool) or not math.isfinite(description.fps) or description.fps <= 0:
        raise ValueError(f"fps is {description.fps!r}, expected steps per second above 0")
    for camera, size in description.cameras.items():
        if min(size) < 1 or max(size) > 1 << 16:
            raise ValueError(f"camera {camera} has {size} pixels")
