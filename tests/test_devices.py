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


@pytest.mark.parametrize(
    ("cuda", "visible", "cause"),
    [
        (None, None, "This torch is built without CUDA"),
        ("12.8", "", "CUDA_VISIBLE_DEVICES='' hides every card: unset it"),
        ("12.8", "-1", "CUDA_VISIBLE_DEVICES='-1' hides every card"),
        ("12.8", "0", "Look whether `nvidia-smi` lists the card"),
    ],
)
def test_why_no_card_is_found(monkeypatch, cuda, visible, cause):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=r"^GPU not detected") as told:
        choose_device("cuda")
    assert cause in str(told.value) and "invoke doctor" in str(told.value)
