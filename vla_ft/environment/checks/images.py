"""Images that were built from another lock than the one in the clone."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, ok, warn
from vla_ft.environment.facts import Facts
from vla_ft.environment.table import Table
from vla_ft.errors import UserError


def run(facts: Facts, table: Table) -> list[Finding]:
    """A warning for each image whose lock label is not the present lock's hash."""
    if facts.engine.state != "ok":
        return []
    if not facts.engine.images:
        return [ok("No image is built yet.", "`invoke build` builds this machine's.")]
    findings = []
    for image in facts.engine.images:
        try:
            current = table.environment(image.environment).lock_hash
        except UserError as problem:
            findings.append(warn(f"{image.tag}: {problem}", f"Remove it with `docker image rm {image.tag}`."))
            continue
        if image.lock_hash == current:
            findings.append(ok(f"{image.tag} is built from the present lock of {image.environment}."))
        else:
            findings.append(
                warn(
                    f"{image.tag} was built from lock {image.lock_hash or 'unknown'}; {image.environment} is now "
                    f"{current}.",
                    f"`invoke build --gpu {image.environment}` builds it again.",
                )
            )
    return findings


CHECK = Check("images", "docker", "images are built from the present locks", run)
