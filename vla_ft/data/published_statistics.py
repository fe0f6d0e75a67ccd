"""Statistics in the JSON shapes of published checkpoints, both ways.

CogACT and OpenVLA: ``dataset_statistics.json``, a dictionary of datasets with ``q01``, ``q99`` and ``mask``.
open-pi-zero (Octo): one dataset's, with ``p01`` and ``p99`` and no mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.errors import UserError

_SHARED = ("mean", "std", "max", "min")


def to_openvla(statistics: DatasetStatistics, descriptions: Mapping[str, DatasetDescription]) -> dict[str, Any]:
    """``dataset_statistics.json``: dataset name -> action, proprio, num_transitions, num_trajectories.

    ``descriptions``: one for each part of a mixture, or the single dataset's under its name. The mask says which action
    dimensions are scaled: all but grippers.
    """
    data = {}
    for name, description in descriptions.items():
        part = statistics.of(name)
        entry = _entry(part, "q01", "q99")
        entry["action"]["mask"] = (~description.is_gripper).tolist()
        data[name] = entry
    return data


def to_octo(statistics: DatasetStatistics) -> dict[str, Any]:
    """One dataset's statistics as open-pi-zero keeps them."""
    return _entry(statistics, "p01", "p99")


def from_openvla(data: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> DatasetStatistics:
    """Read ``dataset_statistics.json``: a single dataset, or the parts of a mixture. ``names``: feature -> dimensions.

    Raises UserError for another shape. The source hash is of these numbers: data can never match it.
    """
    parts = {name: _read(entry, names, "q01", "q99", name) for name, entry in data.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return DatasetStatistics(
        features={}, source_hash=_hash(data), episodes=sum(p.episodes for p in parts.values()), parts=parts
    )


def from_octo(data: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> DatasetStatistics:
    """Inverse of ``to_octo``; ``names`` as in ``from_openvla``. Raises UserError."""
    return _read(data, names, "p01", "p99", "the file")


def action_mask(entry: Mapping[str, Any]) -> np.ndarray:
    """bool [A]: which action dimensions a dataset's entry says are scaled; all of them where it says nothing."""
    action = entry["action"]
    return np.asarray(action.get("mask", [True] * len(action["mean"])), dtype=bool)


def _entry(statistics: DatasetStatistics, low: str, high: str) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, feature in statistics.features.items():
        numbers = {key: getattr(feature, key) for key in _SHARED} | {low: feature.q01, high: feature.q99}
        entry[name] = {key: value.astype(float).tolist() for key, value in numbers.items()}
    entry["num_transitions"] = statistics["action"].count
    entry["num_trajectories"] = statistics.episodes
    return entry


def _read(
    entry: Mapping[str, Any], names: Mapping[str, tuple[str, ...]], low: str, high: str, where: str
) -> DatasetStatistics:
    try:
        features = {}
        for feature, dimensions in names.items():
            numbers = {key: np.asarray(entry[feature][key], dtype=np.float32) for key in (*_SHARED, low, high)}
            if any(value.shape != (len(dimensions),) for value in numbers.values()):
                raise UserError(
                    f"The statistics of {where} have {len(numbers['mean'])} {feature} dimensions, expected "
                    f"{len(dimensions)}: {', '.join(dimensions)}. Give the file of this robot's dataset."
                )
            q01, q99 = numbers.pop(low), numbers.pop(high)
            features[feature] = FeatureStatistics(
                **numbers, q01=q01, q99=q99, count=int(entry["num_transitions"]), names=tuple(dimensions)
            )
        return DatasetStatistics(features=features, source_hash=_hash(entry), episodes=int(entry["num_trajectories"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} holds no statistics of the expected shape ({type(error).__name__}: {error}). Expected "
            f"{', '.join(names)} with {', '.join((*_SHARED, low, high))}, num_transitions and num_trajectories."
        ) from None


def _hash(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
