"""Free disk for environments and images."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, error, ok, warn
from vla_ft.environment.facts import GIB, Facts
from vla_ft.environment.table import Table

LEAST = 2 * GIB
"""The cpu environment is 1.4 GiB."""
ENOUGH = 15 * GIB
"""Building a CUDA image takes about 12 GiB: 8 of layers and 4 of downloaded wheels (measured for cu128)."""


def run(facts: Facts, table: Table) -> list[Finding]:
    """One finding a folder: an error where no environment fits, a warning where no CUDA image does."""
    findings = []
    for folder, free in facts.disk_free_bytes.items():
        seen = f"{free / GIB:.1f} GiB are free at {folder}"
        if free < LEAST:
            findings.append(error(f"{seen}; the smallest environment needs {LEAST / GIB:.0f}.", "Free some space."))
        elif free < ENOUGH:
            remedy = "Free some space before `invoke build`; `docker system prune` removes what nothing uses."
            findings.append(warn(f"{seen}; building a CUDA image takes about {ENOUGH / GIB:.0f}.", remedy))
        else:
            findings.append(ok(f"{seen}."))
    return findings


CHECK = Check("disk", "machine", "free space for environments and images", run)
