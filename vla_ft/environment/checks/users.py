"""Engines that map a container's users: whom the folders of data and runs must belong to."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, ok, warn
from vla_ft.environment.facts import Facts
from vla_ft.environment.table import Table


def run(facts: Facts, table: Table) -> list[Finding]:
    """A warning where the engine maps users to numbers that own nothing outside."""
    if facts.engine.state != "ok":
        return []
    if facts.engine.users == "rootless":
        return [ok("The engine is rootless: containers run as its root, which is you outside.")]
    if facts.engine.users == "remapped":
        return [
            warn(
                "The engine maps users (userns-remap): a container's user is another one outside and cannot write your "
                "folders.",
                "Give each service `userns_mode: host` in a compose file of your own, named in COMPOSE_FILE of .env, "
                "or give the runs folder to the mapped user.",
            )
        ]
    return [ok("Containers run as your user.")]


CHECK = Check("users", "docker", "what containers write is yours", run)
