"""Compose and buildx, the two plugins of the docker command that are used."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, ok, warn
from vla_ft.environment.facts import Facts
from vla_ft.environment.table import Table, parse_version

MINIMUM = "2.26"
"""The oldest that compose.yaml was tried with (2.26.1)."""


def run(facts: Facts, table: Table) -> list[Finding]:
    """Warnings where `docker compose` or `docker buildx` is missing or old."""
    if facts.engine.state != "ok":
        return []
    findings = []
    compose = facts.engine.compose
    if compose is None:
        findings.append(
            warn(
                "`docker compose` is missing.", "Install the Compose plugin, version 2; until then use `invoke train`."
            )
        )
    elif parse_version(compose) < parse_version(MINIMUM):
        findings.append(warn(f"Compose {compose} is older than {MINIMUM}.", f"Raise it to {MINIMUM} or newer."))
    else:
        findings.append(ok(f"Compose {compose}."))
    if facts.engine.buildx is None:
        findings.append(warn("`docker buildx` is missing: images cannot be built.", "Install the buildx plugin."))
    else:
        findings.append(ok(f"buildx {facts.engine.buildx}."))
    return findings


CHECK = Check("compose", "docker", "compose and buildx are there and new enough", run)
