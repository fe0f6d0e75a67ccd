"""Which card is planned for."""

from __future__ import annotations

import pytest

from vla_ft.environment.facts import NVML_OK, Device, Gpus
from vla_ft.errors import UserError
from vla_ft.planning.cards import target_of


@pytest.mark.parametrize("text", ["22GiB", "22 gib", "22G", "22.0GiB"])
def test_an_amount_of_memory(text):
    target = target_of(text, 4)
    assert (target.memory_gib, target.cards, target.name) == (22.0, 4, "22 GiB")


def test_a_card_of_the_table():
    target = target_of("RTX 3090", None)
    assert (target.name, target.memory_gib, target.cards, target.bf16) == ("rtx3090", 24.0, 1, True)
    assert not target_of("v100", 1).bf16


@pytest.mark.parametrize("text", ["22GiBB", "22", "22gigs"])
def test_a_misspelt_amount_is_told_the_form(text):
    with pytest.raises(UserError, match="of the form 22GiB"):
        target_of(text, 1)


def test_an_unknown_card_gets_the_nearest_name():
    with pytest.raises(UserError, match="Did you mean 'rtx3090'"):
        target_of("rtx3009", 1)


@pytest.mark.parametrize(("card", "cards"), [("0GiB", 1), ("rtx3090", 0)])
def test_nothing_is_no_target(card, cards):
    with pytest.raises(UserError):
        target_of(card, cards)


def test_the_smallest_card_of_this_machine():
    devices = tuple(Device(name, (8, 6), gib * 2**30) for name, gib in (("NVIDIA A40", 45), ("NVIDIA RTX A5000", 24)))
    target = target_of(None, None, Gpus(NVML_OK, "570", devices))
    assert (target.name, target.memory_gib, target.cards) == ("a5000", 24.0, 2)
    with pytest.raises(UserError, match="Name one, such as card=rtx3090"):
        target_of(None, None, Gpus())
