"""The largest batch that fits."""

from __future__ import annotations

import dataclasses

import numpy as np

from vla_ft.config import RunConfig
from vla_ft.planning.cards import Target
from vla_ft.planning.forecast import Planner
from vla_ft.planning.margin import margin_bytes
from vla_ft.planning.options import Option
from vla_ft.planning.states import GIB

LARGEST_BATCH = 4096
"""Nobody asks for more samples at once."""
GRANULES = 2**20
"""Bytes: some hundred tensors at once, each up to 511 bytes larger in the allocator than it is."""


def largest_batch(option: Option, planner: Planner, target: Target) -> int:
    """The most samples per device that fit; 0 when not even one does.

    Every allocation of a step is affine in the batch, so two traces give the line of every moment; what the allocator
    adds to reach its multiples is not, and is left free.
    """
    first = option.config.batch.per_device
    second = max(1, first // 2) if first > 1 else 2
    low, high = sorted((first, second))
    one, two = (_moments(with_batch(option.config, size), option, planner) for size in (low, high))
    room = (target.memory_gib * GIB - margin_bytes(option.forecast.setup, 0)) / _margin_growth(option)
    return _solve(one, two, low, high, room - GRANULES)


def _moments(config: RunConfig, option: Option, planner: Planner) -> np.ndarray:
    """Bytes allocated at each moment of a run: those of a step, and the fullest of making a cache."""
    caching = planner.trace(config, option.forecast.setup).caching
    made = [float(caching.peak)] if caching else []
    return np.append(planner.moments(config, option.forecast.setup).total, made)


def _margin_growth(option: Option) -> float:
    """Bytes needed for each allocated byte, the part of the margin that grows with it included."""
    setup = option.forecast.setup
    return 1 + (margin_bytes(setup, GIB) - margin_bytes(setup, 0)) / GIB


def _solve(one: np.ndarray, two: np.ndarray, low: int, high: int, room: float) -> int:
    if len(one) != len(two):  # other kernels at another size: the peaks alone
        one, two = np.array([one.max()]), np.array([two.max()])
    slope = (two - one) / (high - low)
    start = one - slope * low
    if (start > room).any():
        return 0
    growing = slope > 0
    limit = ((room - start[growing]) / slope[growing]).min() if growing.any() else float(LARGEST_BATCH)
    return int(min(LARGEST_BATCH, max(0, np.floor(limit))))


def with_batch(config: RunConfig, size: int) -> RunConfig:
    """The same run with ``size`` samples per device."""
    return dataclasses.replace(config, batch=dataclasses.replace(config.batch, per_device=size))
