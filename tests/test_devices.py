from __future__ import annotations

import pytest
import torch

from vla_ft.devices import choose_device
from vla_ft.errors import UserError


@pytest.fixture(autouse=True)
def no_promise(monkeypatch):
    monkeypatch.delenv("VLA_FT_DEVICE", raising=False)


def test_cpu_when_asked():
    assert choose_device("cpu") == torch.device("cpu")


def test_a_promise_that_the_wish_contradicts_is_refused(monkeypatch):
    monkeypatch.setenv("VLA_FT_DEVICE", "cuda")
    with pytest.raises(UserError, match="device=cpu, but this environment was started for cuda"):
        choose_device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
@pytest.mark.parametrize(("wanted", "promised"), [("cuda", "auto"), ("auto", "cuda"), ("cuda", "cuda")])
def test_a_promised_card_that_is_missing_never_becomes_the_cpu(monkeypatch, wanted, promised):
    monkeypatch.setenv("VLA_FT_DEVICE", promised)
    with pytest.raises(UserError, match="torch finds none"):
        choose_device(wanted)


def test_a_mistyped_promise_is_named(monkeypatch):
    monkeypatch.setenv("VLA_FT_DEVICE", "gpu")
    with pytest.raises(UserError, match="VLA_FT_DEVICE is 'gpu', expected cpu or cuda"):
        choose_device("auto")
