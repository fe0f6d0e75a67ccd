"""Several datasets as one: a reader over all of them, exact shares of every epoch, statistics of each."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.order import MixtureOrder
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.split import EpisodeSplit, split_episodes
from vla_ft.data.statistics import DatasetStatistics, cached_statistics
from vla_ft.data.windows import WindowIndex
from vla_ft.data.wrapping import NamedReader
from vla_ft.errors import UserError

_UNSAID = ("", "unknown")
_SHOWN = 3
_MUST_AGREE = ("action_names", "action_units", "action_kind", "action_mode", "gripper", "gripper_dims")


class MixtureReader(EpisodeReader):
    """The episodes of all parts, numbered through in their order. Samples carry the name of their part.

    ``description`` is what the parts have in common: one action space, the cameras that all of them have, their
    proprioception where it is alike (else none), their rate where it is one (else 0); and the rate of each. Raises
    UserError for parts that cannot share a batch.
    """

    def __init__(self, parts: Mapping[str, EpisodeReader], weights: Mapping[str, float], name: str = "mixture") -> None:
        self.parts: dict[str, EpisodeReader] = {
            key: part if part.description.name == key else NamedReader(part, key) for key, part in parts.items()
        }
        self.weights = {key: float(weights[key]) for key in self.parts}
        self.lengths = np.concatenate([np.asarray(p.lengths, dtype=np.int64) for p in self.parts.values()])
        self.starts = np.cumsum([0, *(len(p.lengths) for p in self.parts.values())])
        """int64 [parts + 1]: number of the first episode of each part."""
        self.left_out = {
            int(start) + episode: why
            for start, part in zip(self.starts, self.parts.values(), strict=False)
            for episode, why in part.left_out.items()
        }
        self.description = _common(name, [p.description for p in self.parts.values()])

    def resolve(self, episode: int) -> tuple[EpisodeReader, int]:
        """The part that holds an episode, and its number there."""
        if not 0 <= episode < len(self.lengths):
            raise IndexError(f"episode {episode} of {len(self.lengths)}")
        number = int(np.searchsorted(self.starts, episode, side="right")) - 1
        return list(self.parts.values())[number], episode - int(self.starts[number])

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        part, own = self.resolve(episode)
        return part.read(own, steps, keys)

    def instruction(self, episode: int) -> str:
        """See ``EpisodeReader.instruction``."""
        part, own = self.resolve(episode)
        return part.instruction(own)

    def all_proprio(self, episode: int) -> np.ndarray:
        """See ``EpisodeReader.all_proprio``."""
        part, own = self.resolve(episode)
        return part.all_proprio(own)

    def recorded_length(self, episode: int) -> int:
        """See ``EpisodeReader.recorded_length``."""
        part, own = self.resolve(episode)
        return part.recorded_length(own)

    def instruction_variants(self, episode: int) -> tuple[tuple[str, ...], ...]:
        """See ``EpisodeReader.instruction_variants``."""
        part, own = self.resolve(episode)
        return part.instruction_variants(own)

    def name_of(self, episode: int) -> str:
        """The part and the episode's name there."""
        part, own = self.resolve(episode)
        return part.name_of(own)

    def fingerprint(self) -> str:
        """Hash of the parts' names and fingerprints."""
        lines = (f"{name} {part.fingerprint()}" for name, part in self.parts.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def sources(self) -> dict[str, Path]:
        """Every file that observations are read from, behind its part's name."""
        files = ((name, part.sources()) for name, part in self.parts.items())  # type: ignore[attr-defined]
        return {f"{name}/{key}": path for name, found in files for key, path in found.items()}

    def reading(self) -> dict[str, str]:
        """What changes observations read from the same files, behind its part's name."""
        options = ((name, part.reading()) for name, part in self.parts.items())  # type: ignore[attr-defined]
        return {f"{name}/{key}": value for name, found in options for key, value in found.items()}

    def episodes_of(self, number: int, episodes: np.ndarray) -> np.ndarray:
        """Those of ``episodes`` (int64, numbered through) that part ``number`` holds, in its own numbers."""
        start, end = self.starts[number], self.starts[number + 1]
        return episodes[(episodes >= start) & (episodes < end)] - start


@dataclass(frozen=True)
class Dropped:
    """Episodes left out before training: without an instruction, or for another reason, of how many in all."""

    unlabeled: int = 0
    total: int = 0
    left_out: tuple[str, ...] = ()
    """What the reader leaves out (``EpisodeReader.left_out``), a sentence an episode."""

    def __str__(self) -> str:
        said = [f"{self.unlabeled} of {self.total} episodes dropped: no instruction"] if self.unlabeled else []
        if self.left_out:
            more = f"; and {len(self.left_out) - _SHOWN} more (data.json)" if len(self.left_out) > _SHOWN else ""
            shown = "; ".join(self.left_out[:_SHOWN])
            said.append(f"{len(self.left_out)} of {self.total} episodes left out: {shown}{more}")
        return "; ".join(said) or "none dropped"


def labeled_episodes(reader: EpisodeReader) -> np.ndarray:
    """Episodes that say what to do, int64. The published loaders drop the others (``skip_unlabeled``)."""
    kept = [episode for episode in range(len(reader.lengths)) if reader.instruction(episode).strip()]
    return np.array(kept, dtype=np.int64)


def split_parts(
    reader: EpisodeReader, *, fraction: float, seed: int, drop_unlabeled: bool = False
) -> tuple[EpisodeSplit, Dropped]:
    """Hold out the same fraction of every dataset, as ``split_episodes`` does of one; the rest is trained on.

    An episode's place does not depend on which other datasets are there. Raises UserError when nothing is left.
    """
    parts = list(reader.parts.values()) if isinstance(reader, MixtureReader) else [reader]
    starts = np.cumsum([0, *(len(part.lengths) for part in parts)])
    training, validation, dropped = [], [], 0
    for part, start in zip(parts, starts[:-1], strict=True):
        split = split_episodes(len(part.lengths), fraction=fraction, seed=seed)
        kept = labeled_episodes(part) if drop_unlabeled else np.arange(len(part.lengths))
        dropped += len(part.lengths) - len(kept)
        kept = np.setdiff1d(kept, np.array(sorted(part.left_out), dtype=np.int64))
        training.append(np.intersect1d(split.training, kept) + start)
        validation.append(np.intersect1d(split.validation, kept) + start)
        if not len(training[-1]):
            raise UserError(
                f"No episode of {part.description.name} is left to train on: {len(kept)} of {len(part.lengths)} "
                f"{_why(part, drop_unlabeled)}."
            )
    return (
        EpisodeSplit(training=np.concatenate(training), validation=np.concatenate(validation)),
        Dropped(dropped, len(reader.lengths), tuple(reader.left_out.values())),
    )


def _why(part: EpisodeReader, drop_unlabeled: bool) -> str:
    if part.left_out:
        return f"are usable ({next(iter(part.left_out.values()))})"
    mend = "Set data.drop_unlabeled=false or leave the dataset out of the mix"
    return f"carry an instruction. {mend}" if drop_unlabeled else "are usable"


def mixture_statistics(reader: MixtureReader, episodes: np.ndarray, folder: Path) -> DatasetStatistics:
    """Statistics of each part over its own of ``episodes``; kept in ``folder`` and across runs like any dataset's.

    Raises like ``cached_statistics``.
    """
    parts = {}
    for number, (name, part) in enumerate(reader.parts.items()):
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        path = folder / f"statistics_{number:02d}_{safe}.json"
        parts[name] = cached_statistics(part, reader.episodes_of(number, episodes), path)
    digest = hashlib.sha256()
    for name, part_statistics in parts.items():
        digest.update(f"{name} {part_statistics.source_hash} {reader.weights[name]!r}\n".encode())
    count = sum(part.episodes for part in parts.values())
    return DatasetStatistics(features={}, source_hash=digest.hexdigest(), episodes=count, parts=parts)


def mixture_order(reader: MixtureReader, index: WindowIndex, seed: int) -> MixtureOrder:
    """The order of a run: every epoch holds each dataset's share exactly (``epoch_quotas``)."""
    edges = np.searchsorted(index.episodes, reader.starts)
    ends = np.concatenate([[0], index.ends])[edges]
    steps = [int(reader.lengths[index.episodes[a:b]].sum()) for a, b in itertools.pairwise(edges)]
    names = list(reader.parts)
    quotas = epoch_quotas(steps, [reader.weights[name] for name in names])
    return MixtureOrder(names, np.diff(ends).tolist(), quotas, seed)


def epoch_quotas(steps: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Samples of each dataset in an epoch, at least 1: shares are weight x steps, as published.

    A dataset of weight 1 is seen once in an epoch, one of weight 2 twice (OpenVLA's ``make_interleaved_dataset``: the
    length is the greatest size / share of those of weight 1). Where none has weight 1, the greatest weight counts as 1.
    """
    factors = np.asarray(weights, dtype=np.float64)
    unit = 1.0 if (factors == 1.0).any() else float(factors.max())
    exact = np.asarray(steps, dtype=np.float64) * factors / unit
    total = max(len(steps), int(exact.sum() + 1e-6))
    quotas = np.maximum(1, np.floor(exact + 1e-6)).astype(np.int64)
    # What rounding down has left goes to the largest remainders; what raised quotas took, the largest give, one by one.
    for place in np.argsort(np.floor(exact + 1e-6) - exact, kind="stable")[: max(0, total - int(quotas.sum()))]:
        quotas[place] += 1
    for _ in range(int(quotas.sum()) - total):
        quotas[int(np.argmax(quotas))] -= 1
    return [int(q) for q in quotas]


def _common(name: str, parts: Sequence[DatasetDescription]) -> DatasetDescription:
    first = parts[0]
    space = {what: getattr(first, what) for what in _MUST_AGREE}
    for other in parts[1:]:
        for what, known in space.items():
            both = _agreed(known, getattr(other, what))
            if both is None:
                raise UserError(
                    f"'{_first_to_say(parts, what, other)}' and '{other.name}' cannot be mixed: {what} is {known} and "
                    f"{getattr(other, what)}. Mix datasets of one action space, or standardise them to one."
                )
            space[what] = both
    cameras = {camera: size for camera, size in first.cameras.items() if all(camera in p.cameras for p in parts)}
    for camera, size in cameras.items():
        odd = next((p for p in parts if p.cameras[camera] != size), None)
        if odd is not None:
            raise UserError(
                f"Camera '{camera}' has {size} pixels in '{first.name}' and {odd.cameras[camera]} in '{odd.name}'. "
                "Bring them to one size with data.image_size=[224,224]."
            )
    same_proprio = all(part.proprio_names == first.proprio_names for part in parts)
    units: Any = first.proprio_units
    for part in parts if same_proprio else ():
        units = units and _agreed(units, part.proprio_units)
    return DatasetDescription(
        name=name,
        cameras=cameras,
        **space,
        proprio_names=first.proprio_names if same_proprio and units is not None else (),
        proprio_units=units if same_proprio and units is not None else (),
        fps=first.fps if all(p.fps == first.fps for p in parts) else 0.0,
        rates={part.name: part.fps for part in parts},
    )


def _agreed(one: Any, other: Any) -> Any:
    """What both say, ``unknown`` agreeing with anything (of units each by itself); None where they differ."""
    if isinstance(one, str):
        return one if other in (one, *_UNSAID) else other if one in _UNSAID else None
    if not one or not other:  # gripper_dims that are not known
        return one or other
    if len(one) != len(other):
        return None
    pairs = [_agreed(a, b) if isinstance(a, str) else a if a == b else None for a, b in zip(one, other, strict=True)]
    return None if None in pairs else tuple(pairs)


def _first_to_say(parts: Sequence[DatasetDescription], what: str, other: DatasetDescription) -> str:
    """The part before ``other`` that disagrees with it."""
    return next(p.name for p in parts if _agreed(getattr(p, what), getattr(other, what)) is None)
