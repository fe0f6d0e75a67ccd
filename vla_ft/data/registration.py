"""Datasets registered as the published RDT code wants it: three JSON files in one folder, read as a mix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_ft.errors import UserError, nearest

NAMES = "finetune_datasets.json"
FREQUENCIES = "dataset_control_freq.json"
WEIGHTS = "finetune_sample_weights.json"


def is_registration(folder: Path) -> bool:
    """Whether a folder holds the list of datasets."""
    return (folder / NAMES).is_file()


def read_registration(folder: Path) -> dict[str, tuple[float | None, float]]:
    """Dataset name -> (control frequency in Hz, weight), in the order of the list.

    The three files: a list of names, a frequency by name, a weight by name. A weight that is missing is 1; frequency 0
    means unknown and becomes None. Raises UserError for a name without a frequency, and files of another form.
    """
    names = _read(folder / NAMES, list)
    frequencies = _read(folder / FREQUENCIES, dict)
    weights = _read(folder / WEIGHTS, dict) if (folder / WEIGHTS).is_file() else {}
    found = {}
    for name in names:
        if not isinstance(name, str) or name not in frequencies:
            raise UserError(
                f"{folder / NAMES} lists {name!r}, {folder / FREQUENCIES} has no control frequency for it."
                f"{nearest(str(name), frequencies)} Add it in Hz; 0 means unknown."
            )
        weight = _number(weights.get(name, 1.0), folder / WEIGHTS, name)
        if weight <= 0:
            raise UserError(f"{folder / WEIGHTS} gives {name} the weight {weight:g}. Expected more than 0.")
        found[name] = (_number(frequencies[name], folder / FREQUENCIES, name) or None, weight)
    return found


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, kind):
            raise ValueError(f"it holds a {type(value).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Expected a JSON {kind.__name__}, as the published RDT code has it."
        ) from error
    return value


def _number(value: Any, path: Path, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"{path} gives {name} the value {value!r}, expected a number of 0 or more.")
    return float(value)


def as_entries(found: Mapping[str, tuple[float | None, float]]) -> dict[str, dict[str, Any]]:
    """What a mix says of the same datasets: ``{name: {fps, weight}}``, as it may stand in a recipe."""
    return {name: {"fps": fps, "weight": weight} for name, (fps, weight) in found.items()}
