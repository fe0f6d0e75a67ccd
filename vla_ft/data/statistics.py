"""Statistics of actions and proprioception: computed over the training episodes only, kept with every checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.errors import UserError

CONSTANT_STD = 1e-6
"""A dimension whose standard deviation is below this is named as constant."""
FEATURES = ("action", "proprio")
_ARRAYS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Per dimension, float32 [D]. ``std`` is the population form (ddof 0); ``count`` is the number of steps."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    count: int
    names: tuple[str, ...]

    @property
    def constant(self) -> tuple[str, ...]:
        """Names of the dimensions that do not move."""
        return tuple(n for n, s in zip(self.names, self.std, strict=True) if s < CONSTANT_STD)

    @property
    def unbiased_std(self) -> np.ndarray:
        """Sample standard deviation (ddof 1), float32 [D]: what the original ACT normalises by."""
        return (self.std * np.sqrt(self.count / max(1, self.count - 1))).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Statistics by feature (``action``, ``proprio``), with the hash of the data and episodes they come from."""

    features: dict[str, FeatureStatistics]
    source_hash: str

    def __getitem__(self, feature: str) -> FeatureStatistics:
        return self.features[feature]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; float32 values survive the round trip exactly."""
        features = {
            name: {key: getattr(f, key).astype(float).tolist() for key in _ARRAYS}
            | {"count": f.count, "names": list(f.names), "constant": list(f.constant)}
            for name, f in self.features.items()
        }
        return {"source_hash": self.source_hash, "features": features}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DatasetStatistics:
        """Inverse of ``to_json``."""
        features = {
            name: FeatureStatistics(
                **{key: np.asarray(f[key], dtype=np.float32) for key in _ARRAYS},
                count=int(f["count"]),
                names=tuple(f["names"]),
            )
            for name, f in data["features"].items()
        }
        return cls(features=features, source_hash=data["source_hash"])

    def save(self, path: Path) -> None:
        """Write as JSON; a reader sees the old file or the whole new one."""
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            unfinished.write_text(json.dumps(self.to_json(), indent=1))
            os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise UserError(
                f"Cannot write statistics to {path}: {error}. Expected a writable folder with space left."
            ) from error

    @classmethod
    def load(cls, path: Path) -> DatasetStatistics:
        """Read what ``save`` wrote. Raises UserError when it is missing or damaged: a policy is useless without it."""
        if not path.is_file():
            raise UserError(
                f"No statistics at {path}. A policy cannot be un-normalised without them; "
                "restore statistics.json from the run that trained it."
            )
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} holds no statistics ({type(error).__name__}: {error}). Expected what training wrote there: "
                "restore it from the run."
            ) from error


def cached_statistics(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray, path: Path) -> DatasetStatistics:
    """Statistics from ``path`` when they come from this very data and these episodes; otherwise compute and save them.

    A file that is damaged or of other data is replaced: it is a cache, not a source. Raises like
    ``compute_statistics`` and ``save``.
    """
    if path.is_file():
        with contextlib.suppress(UserError):
            kept = DatasetStatistics.load(path)
            if kept.source_hash == source_hash(reader, episodes):
                return kept
    statistics = compute_statistics(reader, episodes)
    statistics.save(path)
    return statistics


def source_hash(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray) -> str:
    """Hash (hex) of the data and of which of its episodes are used."""
    digest = hashlib.sha256(reader.fingerprint().encode())
    digest.update(np.asarray(episodes, dtype=np.int64).tobytes())
    return digest.hexdigest()


def compute_statistics(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray) -> DatasetStatistics:
    """Statistics over ``episodes``, reading numeric columns only. Raises UserError on NaN/Inf, naming where, and when
    there are no episodes."""
    if not len(episodes):
        raise UserError("No episodes to compute statistics from. Expected at least one training episode.")
    description = reader.description
    names = {"action": description.action_names, "proprio": description.proprio_names}
    columns: dict[str, list[np.ndarray]] = {key: [] for key in FEATURES}
    for episode in episodes:
        values = reader.read(int(episode), np.arange(reader.lengths[episode]), FEATURES)
        for key in FEATURES:
            _refuse_non_finite(reader, int(episode), key, values[key], names[key])
            columns[key].append(values[key])
    features = {key: _summarise(np.concatenate(columns[key]), names[key]) for key in FEATURES}
    return DatasetStatistics(features=features, source_hash=source_hash(reader, episodes))


def check_finite(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray) -> None:
    """Read the numeric columns of ``episodes``. Raises UserError on NaN/Inf, naming where."""
    names = {"action": reader.description.action_names, "proprio": reader.description.proprio_names}
    for episode in episodes:
        values = reader.read(int(episode), np.arange(reader.lengths[episode]), FEATURES)
        for key in FEATURES:
            _refuse_non_finite(reader, int(episode), key, values[key], names[key])


def _summarise(values: np.ndarray, names: tuple[str, ...]) -> FeatureStatistics:
    wide = values.astype(np.float64)
    q01, q99 = np.quantile(wide, [0.01, 0.99], axis=0)
    arrays = {
        "mean": wide.mean(0),
        "std": wide.std(0),
        "min": wide.min(0),
        "max": wide.max(0),
        "q01": q01,
        "q99": q99,
    }
    return FeatureStatistics(**{k: v.astype(np.float32) for k, v in arrays.items()}, count=len(values), names=names)


def _refuse_non_finite(
    reader: EpisodeReader, episode: int, key: str, values: np.ndarray, names: tuple[str, ...]
) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, dimension = (int(x) for x in bad[0])
        raise UserError(
            f"{reader.name_of(episode)}: {key} '{names[dimension]}' at step {step} is {values[step, dimension]}, "
            f"expected a finite number ({len(bad)} such values in this episode). Remove or repair the episode."
        )
