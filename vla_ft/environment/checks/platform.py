"""The locks hold wheels for Linux on x86_64 and nothing else."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, error, ok
from vla_ft.environment.facts import Facts
from vla_ft.environment.table import Table


def run(facts: Facts, table: Table) -> list[Finding]:
    """An error on any other system or processor."""
    seen = f"{facts.system} on {facts.machine}"
    if (facts.system, facts.machine) == ("Linux", "x86_64"):
        return [ok(seen)]
    return [error(f"{seen}: the locks hold wheels for Linux on x86_64 only.", "Run on a Linux x86_64 machine.")]


CHECK = Check("platform", "machine", "system and processor have locked wheels", run)
