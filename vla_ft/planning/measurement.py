"""What a real step on this CPU allocates, by the allocator's own events: the truth that forecasts are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Measured:
    """Bytes. ``states`` are counted, ``rise`` is the highest running sum of the allocator's events from there on."""

    states: int
    rise: int

    @property
    def peak(self) -> int:
        """The most that was allocated at once."""
        return self.states + self.rise


def measure(states: Callable[[], Iterable[Tensor]], step: Callable[[], Any]) -> Measured:
    """Run ``step`` under torch's profiler; ``states`` gives every tensor that is held when it begins."""
    held = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in states()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    running = highest = 0
    for change in _changes(recorded):
        running += change
        highest = max(highest, running)
    return Measured(sum(held.values()), highest)


def _changes(recorded: profile) -> list[int]:
    """Bytes of each allocation (above 0) and release of CPU memory, in the order of time."""
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
