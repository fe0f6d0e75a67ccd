"""NVIDIA's container runtime: without it a container starts and sees no card."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, error, ok
from vla_ft.environment.facts import NVML_OK, Facts
from vla_ft.environment.table import Table


def run(facts: Facts, table: Table) -> list[Finding]:
    """An error where cards and an engine are here and the engine has no NVIDIA runtime."""
    if facts.engine.state != "ok":
        return []
    if facts.engine.nvidia_runtime:
        return [ok("The engine has NVIDIA's runtime.")]
    if facts.gpus.state != NVML_OK:
        return [ok("No NVIDIA runtime, and no card that needs it.")]
    return [
        error(
            "Cards are here, but the engine has no NVIDIA runtime: containers would see none of them.",
            "Install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, restart Docker; or use --local.",
        )
    ]


CHECK = Check("runtime", "docker", "containers can see the cards", run)
