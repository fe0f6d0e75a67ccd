"""The order of training samples as a pure function: no state, no memory, the same for any workers and world size.

A run is one endless stream of samples. Position p lies in epoch p // n at place p % n of that epoch's permutation of
the n windows. So resuming needs one number, the position, and no state of any loader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_ROUNDS = 6
_LEAST_HALF_BITS = 4
"""Below 256 elements a Feistel network reaches few of all permutations, so small sets walk inside a larger domain."""
_STEP = np.uint64(0x9E3779B97F4A7C15)


def shuffled(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Window index int64 of each global position: every run of ``size`` positions (an epoch) visits each window once.

    Each epoch's permutation is a Feistel network over 2^(2b) >= ``size`` values, keyed by (seed, epoch); results
    outside the range are put through again until they fall inside (cycle walking: Black and Rogaway, Ciphers
    with Arbitrary Finite Domains, 2002). Memory and time do not depend on ``size``.
    """
    if size < 1:
        raise ValueError("no windows to order")
    flat = np.asarray(positions, dtype=np.int64)
    if flat.size and flat.min() < 0:
        raise ValueError(f"negative position {flat.min()}")
    half = max(_LEAST_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
    keys = _mix((flat // size).astype(np.uint64) + _mix(np.full(1, seed % 2**64, dtype=np.uint64)))
    values = _feistel((flat % size).astype(np.uint64), keys, half)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], keys[outside], half)
    return values.astype(np.int64)


def hash_seed(text: str) -> int:
    """A seed for ``shuffled`` from what it belongs to: seeds of different things have nothing in common."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


class Order(Protocol):
    """Which window lies at which global position."""

    def __len__(self) -> int:
        """Positions of an epoch."""

    def windows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Window index and pass over the data of each position, int64 [n] each."""


@dataclass(frozen=True)
class ShuffledOrder:
    """One dataset: an epoch is a permutation of its ``size`` windows."""

    size: int
    seed: int

    def __len__(self) -> int:
        return self.size

    def windows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Order.windows``; the pass is the epoch."""
        flat = np.asarray(positions, dtype=np.int64)
        return shuffled(flat, self.size, self.seed), flat // self.size


class MixtureOrder:
    """Several datasets, each with an exact share of every epoch.

    An epoch's positions are shuffled; place p of that order belongs to the dataset whose quota covers p. Each dataset
    walks its own endless shuffled stream, ``quota`` windows further every epoch: all its windows are seen equally often
    however small its share, and nothing but the quotas is kept in memory. The stream is keyed by the dataset's name, so
    it stays the same when others join or leave. ``sizes``: windows of each, numbered through in this order.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int], quotas: Sequence[int], seed: int) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.quotas = np.asarray(quotas, dtype=np.int64)
        if not len(self.sizes) == len(self.quotas) == len(names) or self.sizes.min() < 1 or self.quotas.min() < 1:
            raise ValueError(f"windows {sizes} and quotas {quotas} of {names}: expected one of each, at least 1")
        self.seed = seed
        self._seeds = [hash_seed(f"stream {seed} {name}") for name in names]
        self._ends, self._offsets = np.cumsum(self.quotas), np.cumsum(self.sizes) - self.sizes

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Order.windows``; the pass is the dataset's own."""
        flat = np.asarray(positions, dtype=np.int64)
        places = shuffled(flat, len(self), self.seed)
        owners = np.searchsorted(self._ends, places, side="right")
        streams = (flat // len(self)) * self.quotas[owners] + places - (self._ends - self.quotas)[owners]
        windows = np.empty_like(flat)
        for owner in np.unique(owners):
            chosen = owners == owner
            own = shuffled(streams[chosen], int(self.sizes[owner]), self._seeds[owner])
            windows[chosen] = own + self._offsets[owner]
        return windows, streams // self.sizes[owners]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which positions each rank takes. ``per_device``: samples of one forward pass of one rank."""

    per_device: int
    world: int = 1
    rank: int = 0
    accumulation: int = 1

    def __post_init__(self) -> None:
        if min(self.per_device, self.world, self.accumulation) < 1 or not 0 <= self.rank < self.world:
            raise ValueError(f"impossible batch plan {self}")

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.per_device * self.world * self.accumulation

    def batches(self, start: int = 0, steps: int | None = None) -> Iterator[np.ndarray]:
        """Yield this rank's positions int64 [per_device]: ``accumulation`` batches an optimizer step, endless or
        ``steps`` optimizer steps, from global position ``start``.

        A rank takes one contiguous slice of each global batch. Another world size with the same global batch therefore
        sees the same samples in the same step.
        """
        step = 0
        while steps is None or step < steps:
            first = start + step * self.global_batch + self.rank * self.per_device * self.accumulation
            for part in range(self.accumulation):
                begin = first + part * self.per_device
                yield np.arange(begin, begin + self.per_device, dtype=np.int64)
            step += 1


def _feistel(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """A bijection of [0, 2^(2 half)): uint64 in, uint64 out. ``keys`` has one key an element."""
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for turn in range(_ROUNDS):
        key = _mix(keys + np.uint64(turn + 1))
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) over uint64 arrays; arithmetic wraps."""
    z = values + _STEP
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
