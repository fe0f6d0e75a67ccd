"""NVIDIA's container runtime: without it a container starts and sees no card."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, ok, warn
from vla_ft.environment.facts import NVML_OK, Facts
from vla_ft.environment.table import Table


def run(facts: Facts, table: Table) -> list[Finding]:
    """A warning where cards and an engine are here and the engine names no NVIDIA runtime.

    No error: an engine with NVIDIA's prestart hook hands over cards without naming a runtime.
    """
    if facts.engine.state != "ok":
        return []
    if facts.engine.nvidia_runtime:
        return [ok("The engine has NVIDIA's runtime.")]
    if facts.gpus.state != NVML_OK:
        return [ok("No NVIDIA runtime, and no card that needs it.")]
    return [
        warn(
            "Cards are here, but the engine names no NVIDIA runtime: unless NVIDIA's hook is installed, containers see "
            "no card.",
            "`invoke build` tries the cards. If it cannot hand them over: install nvidia-container-toolkit, run "
            "`nvidia-ctk runtime configure`, restart Docker; or use --local.",
        )
    ]


CHECK = Check("runtime", "docker", "containers can see the cards", run)
