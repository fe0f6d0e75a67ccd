"""The card that a forecast is for: a name of the table, an amount of memory, or what this machine has."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil

from vla_ft.environment.facts import Gpus, gather_gpus
from vla_ft.environment.table import Table, load_table
from vla_ft.errors import UserError


@dataclass(frozen=True)
class Target:
    """Memory to fit into, and how many cards have it."""

    name: str
    memory_gib: float
    cards: int
    bf16: bool = True
    """Whether it computes in bfloat16 in hardware."""
    host_gib: float | None = None
    """Memory of the machine, against which offloaded states are held; None where it is not known."""


def target_of(card: str | None, cards: int | None, gpus: Gpus | None = None, table: Table | None = None) -> Target:
    """The target of ``card=`` (a card's name, or memory such as ``22GiB``) and ``cards=``.

    Without ``card`` it is what the driver reports here: the smallest of the visible cards, as many as there are. Raises
    UserError for an unknown card with the nearest name, and when nothing is named and no card is here.
    """
    if cards is not None and cards < 1:
        raise UserError(f"cards={cards}: expected 1 or more.")
    if card is None:
        return _local(cards, gpus or gather_gpus(), table or load_table())
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gib|gb|g)", card.strip().lower())
    if amount:
        size = float(amount[1])
        if size <= 0:
            raise UserError(f"card={card} has no memory. Expected an amount such as 22GiB, or a card's name.")
        return Target(f"{size:g} GiB", size, cards or 1)
    if re.match(r"\d+(\.\d+)?\s*(gib|gb|g)", card.strip().lower()) or re.fullmatch(r"[\d.]+", card.strip()):
        raise UserError(f"card={card}: expected an amount of memory of the form 22GiB, or a card's name.")
    known = (table or load_table()).card(card)
    return Target(known.name, known.memory_gib, cards or 1, known.bf16)


def visible_target(cards: int) -> Target:
    """The smallest card that torch sees, for a run of ``cards`` processes."""
    import torch

    every = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    smallest = min(every, key=lambda device: device.total_memory)
    return Target(smallest.name, smallest.total_memory / 2**30, cards, smallest.major >= 8, this_host())


def this_host() -> float:
    """This machine's memory, GiB."""
    return psutil.virtual_memory().total / 2**30


def _local(cards: int | None, gpus: Gpus, table: Table) -> Target:
    if not gpus.devices:
        raise UserError(
            "No card is visible here to plan for. Name one, such as card=rtx3090, or its memory, such as card=22GiB."
        )
    smallest = min(gpus.devices, key=lambda device: device.memory_bytes)
    known = table.match(smallest.name)
    name = known.name if known else smallest.name
    bf16 = smallest.compute_capability >= (8, 0)
    return Target(name, smallest.memory_gib, cards or len(gpus.devices), bf16, this_host())
