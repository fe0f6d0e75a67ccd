"""Statistics of actions and proprioception: computed over the training episodes only, kept with every checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.kept import cache_folder
from vla_ft.data.quantiles import Moments, Quantiles
from vla_ft.errors import UserError, unknown

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
    """Statistics by feature (``action``, ``proprio``), with the hash of the data and episodes they come from.

    Those of a mixture have none of their own: ``parts`` holds each dataset's, by its name in the mixture, in order.
    """

    features: dict[str, FeatureStatistics]
    source_hash: str
    episodes: int = 0
    """How many episodes they were computed from; 0 where it is not known."""
    parts: dict[str, DatasetStatistics] = field(default_factory=dict)

    def __getitem__(self, feature: str) -> FeatureStatistics:
        if self.parts:
            raise UserError(
                f"These are the statistics of {len(self.parts)} datasets, {', '.join(self.parts)}, which are not "
                "normalised alike. Say which dataset is meant."
            )
        return self.features[feature]

    def each(self) -> dict[str, DatasetStatistics]:
        """The statistics of each dataset by its name in the mixture; of a single dataset itself, under ``""``."""
        return self.parts or {"": self}

    def of(self, dataset: str | None) -> DatasetStatistics:
        """Those of one dataset. A single dataset answers to any name, a mixture of one to None. Raises UserError."""
        if not self.parts:
            return self
        if dataset is None and len(self.parts) == 1:
            return next(iter(self.parts.values()))
        if dataset is None:
            first = next(iter(self.parts))
            raise UserError(
                f"A mixture of {', '.join(self.parts)}: say whose units are meant, such as dataset={first}."
            )
        if dataset not in self.parts:
            raise unknown("dataset", dataset, self.parts)
        return self.parts[dataset]

    def number_of(self, dataset: str) -> int:
        """Place of a dataset among ``parts``; 0 for a single dataset. Raises UserError for a name that is not there."""
        if self.parts and dataset not in self.parts:
            raise unknown("dataset", dataset, self.parts)
        return list(self.parts).index(dataset) if self.parts else 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; float32 values survive the round trip exactly."""
        features = {
            name: {key: getattr(f, key).astype(float).tolist() for key in _ARRAYS}
            | {"count": f.count, "names": list(f.names), "constant": list(f.constant)}
            for name, f in self.features.items()
        }
        data: dict[str, Any] = {"source_hash": self.source_hash, "episodes": self.episodes, "features": features}
        if self.parts:
            data["parts"] = {name: part.to_json() for name, part in self.parts.items()}
        return data

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
        parts = {name: cls.from_json(part) for name, part in data.get("parts", {}).items()}
        return cls(features=features, source_hash=data["source_hash"], episodes=data.get("episodes", 0), parts=parts)

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


def statistics_cache() -> Path:
    """Folder of statistics for all runs: below that of all caches (``formats.kept``)."""
    return cache_folder() / "statistics"


def cached_statistics(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray, path: Path) -> DatasetStatistics:
    """Statistics of this very data and these episodes, from ``path`` or from any run before; else computed. ``path``
    holds them afterwards.

    Files that are damaged or of other data are replaced: they are a cache, not a source. A folder for all runs that
    cannot be written costs the next run's time alone. Raises like ``compute_statistics`` and ``save``.
    """
    wanted = source_hash(reader, episodes)
    shared = statistics_cache() / f"{wanted}.json"
    for place in (path, shared):
        if place.is_file():
            with contextlib.suppress(UserError):
                kept = DatasetStatistics.load(place)
                if kept.source_hash == wanted:
                    named = _renamed(kept, reader)
                    if place != path or named is not kept:
                        named.save(path)
                    return named
    statistics = compute_statistics(reader, episodes)
    statistics.save(path)
    with contextlib.suppress(OSError, UserError):
        shared.parent.mkdir(parents=True, exist_ok=True)
        statistics.save(shared)
    return statistics


def _renamed(kept: DatasetStatistics, reader: EpisodeReader) -> DatasetStatistics:
    """The names as the dataset gives them now: they are no part of the numbers that a cache goes by."""
    names = {"action": reader.description.action_names, "proprio": reader.description.proprio_names}
    if all(kept.features[key].names == names[key] for key in FEATURES):
        return kept
    features = {key: replace(kept.features[key], names=names[key]) for key in FEATURES}
    return replace(kept, features=features)


def source_hash(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray) -> str:
    """Hash (hex) of the data and of which of its episodes are used."""
    digest = hashlib.sha256(reader.fingerprint().encode())
    digest.update(np.asarray(episodes, dtype=np.int64).tobytes())
    return digest.hexdigest()


def compute_statistics(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray) -> DatasetStatistics:
    """Statistics over ``episodes``, an episode's numeric columns at a time; memory is bounded (``data.quantiles``).

    Quantiles are NumPy's while a feature's values fit in ``EXACT_VALUES``. Raises UserError on NaN/Inf, naming where,
    and when there are no episodes or no steps.
    """
    if not len(episodes):
        raise UserError("No episodes to compute statistics from. Expected at least one training episode.")
    description = reader.description
    names = {"action": description.action_names, "proprio": description.proprio_names}
    summaries = {key: _Summary(names[key]) for key in FEATURES}
    for episode in episodes:
        values = reader.read(int(episode), np.arange(reader.lengths[episode]), FEATURES)
        for key in FEATURES:
            refuse_non_finite(reader, int(episode), key, values[key], names[key])
            summaries[key].add(values[key])
    if not summaries["action"].moments.count:
        raise UserError(
            f"The {len(episodes)} training episodes of {description.name} have no steps. Check the dataset."
        )
    features = {key: summary.finish() for key, summary in summaries.items()}
    return DatasetStatistics(features=features, source_hash=source_hash(reader, episodes), episodes=len(episodes))


def check_finite(reader: EpisodeReader, episodes: Sequence[int] | np.ndarray) -> None:
    """Read the numeric columns of ``episodes``. Raises UserError on NaN/Inf, naming where."""
    for episode in episodes:
        part, number = reader.resolve(int(episode))
        names = {"action": part.description.action_names, "proprio": part.description.proprio_names}
        values = part.read(number, np.arange(part.lengths[number]), FEATURES)
        for key in FEATURES:
            refuse_non_finite(part, number, key, values[key], names[key])


class _Summary:
    """A feature's statistics in the making."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.moments, self.quantiles = Moments(len(names)), Quantiles(len(names))

    def add(self, rows: np.ndarray) -> None:
        self.moments.add(rows)
        self.quantiles.add(rows)

    def finish(self) -> FeatureStatistics:
        moments = self.moments
        arrays = {
            "mean": moments.mean,
            "std": moments.std,
            "min": moments.min,
            "max": moments.max,
            "q01": self.quantiles.quantile(0.01),
            "q99": self.quantiles.quantile(0.99),
        }
        arrays = {key: value.astype(np.float32) for key, value in arrays.items()}
        return FeatureStatistics(**arrays, count=moments.count, names=self.names)


def refuse_non_finite(
    reader: EpisodeReader, episode: int, key: str, values: np.ndarray, names: tuple[str, ...]
) -> None:
    """Raise UserError when ``values`` [steps, D] of an episode hold NaN or Inf, naming where the first is."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, dimension = (int(x) for x in bad[0])
        raise UserError(
            f"{reader.name_of(episode)}: {key} '{names[dimension]}' at step {step} is {values[step, dimension]}, "
            f"expected a finite number ({len(bad)} such values in this episode). Remove or repair the episode, or "
            "leave damaged ones out with data.on_damage=skip; `vla-ft data check` finds them all."
        )
