"""Which environment a machine gets: the driver admits it, and it holds code for every card.

The driver is what tells environments apart (the CUDA 12.8 wheel has code for a 3090, an A100 and a 5090 alike), and the
cards are what a driver alone cannot answer (CUDA 12.6 starts on a 5090's host and then finds no kernel image).
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_ft.environment.facts import NVML_MISMATCH, NVML_NO_BINDINGS, NVML_OK, Device, Facts
from vla_ft.environment.table import Environment, Table, parse_version
from vla_ft.errors import UserError

LEAVE_OUT = "Name the cards to use with CUDA_VISIBLE_DEVICES and the environment with --gpu."


@dataclass(frozen=True)
class Fit:
    """How an environment fits a machine with cards."""

    environment: Environment
    driver: str
    driver_needed: str
    """Oldest driver for it with these cards."""
    uncovered: tuple[Device, ...]
    """Cards for which its torch has no code."""

    @property
    def admitted(self) -> bool:
        """Whether the driver is new enough."""
        return parse_version(self.driver) >= parse_version(self.driver_needed)

    @property
    def native(self) -> bool:
        """Whether the driver is as new as this CUDA, so that nothing rests on minor-version compatibility."""
        return parse_version(self.driver) >= parse_version(self.environment.native_driver or self.driver_needed)

    @property
    def usable(self) -> bool:
        """Whether every card works in it."""
        return self.admitted and not self.uncovered


@dataclass(frozen=True)
class Choice:
    """The environment of a machine, and why."""

    environment: Environment
    reason: str


def fits(facts: Facts, table: Table) -> list[Fit]:
    """How each CUDA environment fits the cards here, oldest CUDA first; empty without cards."""
    gpus = facts.gpus
    if gpus.state != NVML_OK or gpus.driver is None:
        return []
    return [_fit(one, gpus.driver, gpus.devices, table) for one in table.environments if one.cuda is not None]


def _fit(environment: Environment, driver: str, devices: tuple[Device, ...], table: Table) -> Fit:
    generations = {one.generation for device in devices for one in table.kin(device.name, device.compute_capability)}
    needed = [environment.driver_needed(generation) or "" for generation in generations or {""}]
    uncovered = tuple(device for device in devices if not environment.holds(device.compute_capability))
    return Fit(environment, driver, max(needed, key=parse_version), uncovered)


def choose(facts: Facts, table: Table) -> Choice:
    """The best environment for a machine.

    Without a card, ``cpu``. With cards: among those that work for all of them, the newest whose CUDA the driver knows
    natively, but none older than the cards' own default; a card that is not in the table has the oldest default among
    those of its compute capability. Raises UserError when none works, and for a card that the table refuses.
    """
    if facts.gpus.state in (NVML_NO_BINDINGS, NVML_MISMATCH):
        # A card may well be here: going on without it would hide the fault.
        raise UserError(
            f"Cannot tell which cards are here ({facts.gpus.message}). `invoke doctor` says how to mend it."
        )
    every = fits(facts, table)
    if not every:
        return Choice(table.environment("cpu"), "no NVIDIA card is visible here")
    for device in facts.gpus.devices:
        if reason := table.refusal(device.compute_capability):
            raise UserError(f"{device.name} cannot be used: {reason}. {LEAVE_OUT}")
    usable = [fit for fit in every if fit.usable]
    if not usable:
        raise UserError(_nothing(every, facts))
    defaults = {_default(device, table) for device in facts.gpus.devices}
    preferred = [fit for fit in usable if fit.native or fit.environment.name in defaults] or usable
    best = preferred[-1]
    return Choice(best.environment, f"{_names(facts.gpus.devices)} with driver {best.driver}")


def _nothing(every: list[Fit], facts: Facts) -> str:
    driver = facts.gpus.driver
    covering = [fit for fit in every if not fit.uncovered]
    if covering:
        oldest = min((fit.driver_needed for fit in covering), key=parse_version)
        return (
            f"No environment works for {_names(facts.gpus.devices)} with driver {driver}. "
            f"Expected driver {oldest} or newer: raise it."
        )
    return f"No environment holds code for all of {_names(facts.gpus.devices)}. {LEAVE_OUT}"


def _default(device: Device, table: Table) -> str | None:
    names = {card.environment for card in table.kin(device.name, device.compute_capability)}
    return next((one.name for one in table.environments if one.name in names), None)


def _names(devices: tuple[Device, ...]) -> str:
    counts: dict[str, int] = {}
    for device in devices:
        counts[device.name] = counts.get(device.name, 0) + 1
    return " + ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
