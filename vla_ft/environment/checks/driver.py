"""The driver against every environment: which it admits, which is best, what a newer driver would gain."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, error, ok, warn
from vla_ft.environment.facts import (
    NVML_FAILED,
    NVML_MISMATCH,
    NVML_NO_BINDINGS,
    NVML_NO_DRIVER,
    NVML_NO_LIBRARY,
    Facts,
)
from vla_ft.environment.selection import Fit, choose, fits
from vla_ft.environment.table import Table, parse_version
from vla_ft.errors import UserError


def run(facts: Facts, table: Table) -> list[Finding]:
    """One finding on the driver, then one an environment that matters."""
    every = fits(facts, table)
    if not every:
        return [_without(facts)]
    admitted = [fit for fit in every if fit.admitted]
    if not admitted:
        oldest = min((fit.driver_needed for fit in every), key=parse_version)
        return [error(f"Driver {facts.gpus.driver} is older than every environment needs.", f"Raise it to {oldest}.")]
    try:
        best = choose(facts, table)
    except UserError as problem:
        return [error(str(problem), "Then run `invoke doctor` again.")]
    names = ", ".join(fit.environment.name for fit in admitted)
    findings = [ok(f"Driver {facts.gpus.driver} admits {names}; best here: {best.environment.name}.")]
    chosen = next(fit for fit in every if fit.environment == best.environment)
    if not chosen.native:
        findings.append(_not_native(chosen))
    return findings + _gains(every, chosen)


def _without(facts: Facts) -> Finding:
    message = facts.gpus.message
    match facts.gpus.state:
        case state if state == NVML_NO_LIBRARY:
            return ok("No NVIDIA driver is installed (NVML's library is not there): environment cpu.")
        case state if state == NVML_NO_DRIVER:
            return warn(
                f"An NVIDIA driver is installed, but it is not loaded or sees no card ({message or 'no device'}): "
                "environment cpu.",
                "Load it (`modprobe nvidia`, or reboot after an update) and look at `nvidia-smi`.",
            )
        case state if state == NVML_NO_BINDINGS:
            return error(
                "NVML cannot be asked: its Python bindings are missing, so cards cannot be seen.",
                "Run `pip install -e .` again; it brings nvidia-ml-py.",
            )
        case state if state == NVML_MISMATCH:
            return error(
                "The driver's library and kernel module have different versions: the driver was updated while loaded.",
                "Reboot, or unload and load the nvidia modules.",
            )
        case state if state == NVML_FAILED:
            return error(f"NVML fails: {message}.", "Look at `nvidia-smi` and the kernel log.")
    return error(f"NVML's state is unknown: '{facts.gpus.state}'.", "Run `invoke doctor` again.")


def _not_native(fit: Fit) -> Finding:
    return ok(
        f"{fit.environment.name} runs by CUDA's minor-version compatibility: driver {fit.driver} is older than CUDA "
        f"{fit.environment.cuda}, and PTX from that CUDA cannot be compiled on the card.",
        f"Driver {fit.environment.native_driver} lifts this.",
    )


def _gains(every: list[Fit], chosen: Fit) -> list[Finding]:
    """What a newer driver would open: newer environments that hold all the cards, and what they have more."""
    findings = []
    for fit in every:
        if fit.uncovered or fit.environment.cuda_version <= chosen.environment.cuda_version or fit.native:
            continue
        more = [name for name in fit.environment.attention if name not in chosen.environment.attention]
        what = f"CUDA {fit.environment.cuda}" + (f" with {', '.join(more)}" if more else "")
        if fit.admitted:
            remedy = f"`invoke build --gpu {fit.environment.name}`; native from driver {fit.environment.native_driver}."
            findings.append(
                ok(f"{fit.environment.name} also works here by minor-version compatibility: {what}.", remedy)
            )
        else:
            findings.append(
                ok(f"A newer driver would open {fit.environment.name}: {what}.", f"Raise it to {fit.driver_needed}.")
            )
    return findings


CHECK = Check("driver", "cards", "the driver against every environment's minimum", run)
