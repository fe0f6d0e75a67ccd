"""The Docker engine: images and containers need it, local environments do not."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, error, ok, warn
from vla_ft.environment.facts import Facts
from vla_ft.environment.table import Table


def run(facts: Facts, table: Table) -> list[Finding]:
    """A warning without an engine: everything still runs locally."""
    engine = facts.engine
    match engine.state:
        case "ok":
            return [ok(f"Docker engine {engine.version}.")]
        case "not asked":
            return [ok("Inside an image: no engine is needed.")]
        case "no sdk":
            return [error("The Docker SDK is not installed.", "Run `pip install -e .` again; it brings docker.")]
    return [
        warn(
            f"No Docker engine answers ({engine.message}); tasks run in local environments.",
            "Start Docker, or join the docker group, to build and use images.",
        )
    ]


CHECK = Check("engine", "docker", "a Docker engine answers", run)
