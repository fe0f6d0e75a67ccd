"""``dataset_stat.json``: statistics of states in the unified vector, by the published formulas."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.errors import UserError
from vla_ft.policies.rdt.vector import WIDTH, VectorMap

_ZERO = 1e-8


def dataset_stat(name: str, readers: Sequence[EpisodeReader], state: VectorMap) -> dict[str, Any]:
    """Mean, std, min and max [128] over the states of all steps of all episodes that are not left out.

    The std divides by how often a number is not zero, and takes the mean over all rows: the published form. Unlike the
    published command, an episode that is left out is not replaced by another one. Raises UserError when none is left.
    """
    count, low, high = 0, np.full(WIDTH, np.inf), np.full(WIDTH, -np.inf)
    total, squares, filled = np.zeros(WIDTH), np.zeros(WIDTH), np.zeros(WIDTH)
    for reader in readers:
        for episode in range(len(reader.lengths)):
            if episode in reader.left_out:
                continue
            rows = state.to_vector(reader.read(episode, np.arange(reader.lengths[episode]), ("proprio",))["proprio"])
            count += len(rows)
            total += rows.sum(0)
            used = np.abs(rows) > _ZERO
            squares += (np.where(used, rows, 0.0) ** 2).sum(0)
            filled += used.sum(0)
            low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
    if not count:
        raise UserError(f"No episode of {name} is left to compute statistics from. See data.shortest and skip_still.")
    mean, filled = total / count, np.maximum(filled, 1)
    std = np.sqrt(np.maximum(squares / filled - mean**2 * count / filled, 0))
    numbers = {"state_mean": mean, "state_std": std, "state_min": low, "state_max": high}
    return {"dataset_name": name, **{key: value.tolist() for key, value in numbers.items()}}


def merge_stat(path: Path, entry: dict[str, Any], *, skip_existing: bool = False) -> bool:
    """Put an entry into ``dataset_stat.json``, whole or not at all; False when its name was there and is kept.

    Raises UserError for a file of another form, or one that cannot be written.
    """
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
        if not isinstance(known, dict):
            raise ValueError("it holds no dictionary")
    except ValueError as error:
        raise UserError(f"{path} is no dataset_stat.json ({error}). Name another file.") from error
    if skip_existing and entry["dataset_name"] in known:
        return False
    known[entry["dataset_name"]] = entry
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        beside.write_text(json.dumps(known, indent=4))
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"Cannot write {path}: {error}. Expected a writable folder with space left.") from error
    return True
