"""Runs every check on a machine's facts: what `invoke doctor` prints. Nothing here asks the machine anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla_ft.environment.checks import CHECKS
from vla_ft.environment.checks.base import Check, Finding, Level
from vla_ft.environment.facts import Facts
from vla_ft.environment.table import Table


@dataclass(frozen=True)
class Result:
    """What one check found."""

    check: Check
    findings: tuple[Finding, ...]


def examine(facts: Facts, table: Table, checks: Sequence[Check] = CHECKS) -> list[Result]:
    """Findings of every check, in the order of the registry."""
    return [Result(check, tuple(check.run(facts, table))) for check in checks]


def healthy(results: Sequence[Result]) -> bool:
    """Whether nothing is an error; warnings are left to judgement."""
    return all(finding.level is not Level.ERROR for result in results for finding in result.findings)


def as_data(results: Sequence[Result]) -> dict[str, Any]:
    """Results as plain data for ``--json``."""
    checks = [
        {
            "check": result.check.name,
            "group": result.check.group,
            "what": result.check.what,
            "findings": [
                {"level": finding.level.value, "text": finding.text, "remedy": finding.remedy}
                for finding in result.findings
            ],
        }
        for result in results
    ]
    return {"healthy": healthy(results), "checks": checks}
