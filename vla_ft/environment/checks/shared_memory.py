"""Shared memory: loader workers hand batches over through /dev/shm, and NCCL talks through it."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, ok, warn
from vla_ft.environment.facts import GIB, Facts
from vla_ft.environment.table import Table

ENOUGH = 1 * GIB
"""A batch of 64 samples with four 480 x 640 cameras is 0.22 GiB; two workers hold two batches each."""


def run(facts: Facts, table: Table) -> list[Finding]:
    """A warning below a size at which loader workers die of a bus error."""
    size = facts.shared_memory_bytes
    if size is None:
        return [warn("There is no /dev/shm.", "Train with data.workers=0.")]
    seen = f"/dev/shm holds {size / GIB:.2f} GiB"
    if size >= ENOUGH:
        return [ok(f"{seen}.")]
    remedy = "Mount it larger (`mount -o remount,size=8G /dev/shm`), or train with data.workers=0."
    if facts.in_container:
        remedy = "Start the container with --shm-size=8g (compose.yaml does), or train with data.workers=0."
    return [warn(f"{seen}; loader workers and NCCL want {ENOUGH / GIB:.0f} GiB or more.", remedy)]


CHECK = Check("shared-memory", "machine", "/dev/shm is large enough for workers and NCCL", run)
