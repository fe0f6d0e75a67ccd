"""What a card holds besides torch's allocations. Not covered by the forecast, so kept apart and named.

None of these numbers was measured by this project; each names where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_ft.training.compatibility import Setup

MIB = 2**20


@dataclass(frozen=True)
class Item:
    """One cause, in bytes."""

    name: str
    bytes: float
    source: str


def margin(setup: Setup, allocated: float) -> tuple[Item, ...]:
    """What to leave free beside ``allocated`` bytes."""
    items = [
        Item("CUDA context", 500 * MIB, "general knowledge: 300 to 700 MiB with torch's kernels loaded"),
        Item("cuBLAS and cuDNN workspaces", 200 * MIB, "torch's documentation: cuBLAS 8 to 32 MiB; cuDNN assumed"),
        Item("fragmentation", 0.04 * allocated, "assumed: blocks of 1 MiB and more are not always filled"),
    ]
    if setup.world_size > 1:
        items.append(Item("NCCL buffers", 400 * MIB, "general knowledge: some 100 MiB a communicator and ring"))
    return tuple(items)


def margin_bytes(setup: Setup, allocated: float) -> float:
    """All of it."""
    return sum(item.bytes for item in margin(setup, allocated))
