"""Cards against the table, and against the code that each environment's torch holds."""

from __future__ import annotations

from vla_ft.environment.checks.base import Check, Finding, error, ok, warn
from vla_ft.environment.facts import NVML_OK, Device, Facts
from vla_ft.environment.selection import LEAVE_OUT
from vla_ft.environment.table import Table


def run(facts: Facts, table: Table) -> list[Finding]:
    """One finding a kind of card."""
    if facts.gpus.state != NVML_OK:
        return [ok("No NVIDIA card is visible.")]
    kinds: dict[tuple[str, tuple[int, int]], list[Device]] = {}
    for device in facts.gpus.devices:
        kinds.setdefault((device.name, device.compute_capability), []).append(device)
    return [_judge(devices, table) for devices in kinds.values()]


def _judge(devices: list[Device], table: Table) -> Finding:
    device = devices[0]
    major, minor = device.compute_capability
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    seen = f"{count}{device.name}, sm_{major}{minor}, {device.memory_gib:.1f} GiB"
    if reason := table.refusal(device.compute_capability):
        return error(f"{seen}: it cannot be used: {reason}.", f"Use another card. {LEAVE_OUT}")
    holding = [one.name for one in table.environments if one.holds(device.compute_capability)]
    if not holding:
        return error(f"{seen}: no environment's torch holds code for it.", "Use another card, or leave it out.")
    card = table.match(device.name)
    if card is None:
        return warn(
            f"{seen}: not in the table; code for it is in {', '.join(holding)}.",
            "It works by its architecture; add a line to envs/gpus.toml to name it.",
        )
    if card.compute_capability != device.compute_capability:
        return error(f"{seen}: envs/gpus.toml says {card.sm}.", "Mend the card's line in envs/gpus.toml.")
    if not card.bf16:
        return warn(
            f"{seen}: '{card.name}', code in {', '.join(holding)}; it has no bfloat16.", "Train with precision=fp32."
        )
    return ok(f"{seen}: '{card.name}', code in {', '.join(holding)}.")


CHECK = Check("cards", "cards", "cards are in the table and torch holds code for them", run)
