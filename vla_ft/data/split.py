"""Training and validation episodes: whole episodes, so that no validation frame has a neighbour in training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_ft.errors import UserError


@dataclass(frozen=True)
class EpisodeSplit:
    """Episode indices of a reader, int64, sorted and disjoint. ``validation`` may be empty."""

    training: np.ndarray
    validation: np.ndarray


def split_episodes(
    count: int, *, fraction: float = 0.1, seed: int = 0, validation: Sequence[int] | None = None
) -> EpisodeSplit:
    """Hold out a fraction of ``count`` episodes, or exactly those listed in ``validation`` (``()`` for none).

    A fraction above 0 holds out at least one episode where there are two. The choice is a function of the seed and the
    episode's index alone: ordering by a hash makes it independent of library versions, and an episode keeps its place
    in that order when the set grows. Raises UserError for impossible wishes; one episode at least is left to train on.
    """
    if count < 1:
        raise UserError("The dataset has no episodes; expected at least one to train on.")
    if validation is None:
        chosen = set(_hashed_order(count, seed)[: _held_out(count, fraction)])
    else:
        chosen = _checked_list(count, validation)
    held = np.array(sorted(chosen), dtype=np.int64)
    return EpisodeSplit(training=np.setdiff1d(np.arange(count, dtype=np.int64), held), validation=held)


def _held_out(count: int, fraction: float) -> int:
    if not 0 <= fraction < 1:
        raise UserError(f"The validation fraction is {fraction}, expected 0 <= fraction < 1, such as 0.1.")
    return min(count - 1, max(1, round(count * fraction))) if fraction else 0


def _hashed_order(count: int, seed: int) -> list[int]:
    return sorted(range(count), key=lambda e: (hashlib.sha256(f"split {seed} {e}".encode()).digest(), e))


def _checked_list(count: int, validation: Sequence[int]) -> set[int]:
    chosen = {int(e) for e in validation}
    outside = sorted(e for e in chosen if not 0 <= e < count)
    if outside:
        raise UserError(f"Validation episode {outside[0]} is not in the dataset, expected 0 to {count - 1}.")
    if len(chosen) == count:
        raise UserError(f"All {count} episodes are held out for validation. Leave at least one to train on.")
    return chosen
