"""The CI matrix, from the table: what to build on hosted runners, and what to run on runners with cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vla_ft.environment.table import Card, Environment, Table

HOSTED = "ubuntu-24.04"


def matrix(table: Table, gpus: Sequence[str] = ()) -> dict[str, Any]:
    """Two matrices in the form that GitHub Actions reads with ``fromJSON``.

    ``build`` has a row for each environment. ``gpu`` has a row for each environment and architecture that is some
    card's default, on self-hosted runners with the labels ``gpu`` and ``sm_XX``; with ``gpus``, a row for each of these
    cards instead, on runners labelled with the card's name. Raises UserError for an unknown card.
    """
    rows = [_card_row(table.card(name), table) for name in gpus] if gpus else _architecture_rows(table)
    return {"build": {"include": [_build_row(one, table) for one in table.environments]}, "gpu": {"include": rows}}


def _build_row(environment: Environment, table: Table) -> dict[str, Any]:
    return {
        "environment": environment.name,
        "cuda": environment.cuda or "",
        "torch": environment.torch,
        "lock": environment.lock_hash,
        "sm": " ".join(environment.sm),
        "cards": " ".join(card.name for card in table.cards_of(environment.name)),
        "runs-on": HOSTED,
    }


def _architecture_rows(table: Table) -> list[dict[str, Any]]:
    rows = []
    for environment in table.environments:
        cards = table.cards_of(environment.name)
        for capability in sorted({card.compute_capability for card in cards}):
            of_kind = [card for card in cards if card.compute_capability == capability]
            rows.append(_gpu_row(environment, of_kind, of_kind[0].sm))
    return rows


def _card_row(card: Card, table: Table) -> dict[str, Any]:
    return _gpu_row(table.environment(card.environment), [card], card.name)


def _gpu_row(environment: Environment, cards: list[Card], label: str) -> dict[str, Any]:
    return {
        "environment": environment.name,
        "lock": environment.lock_hash,
        "sm": cards[0].sm,
        "cards": " ".join(card.name for card in cards),
        "runs-on": ["self-hosted", "linux", "x64", "gpu", label],
    }
