"""Linear layers that are faster without gradients: the same numbers, the same names, and when they step aside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vla_ft.nn import linear
from vla_ft.nn.linear import InferenceLinear, gelu_of


def pair() -> tuple[nn.Linear, InferenceLinear]:
    torch.manual_seed(0)
    usual, fast = nn.Linear(24, 40), InferenceLinear(24, 40)
    fast.load_state_dict(usual.state_dict())
    return usual, fast


@pytest.mark.skipif(not linear._AVAILABLE, reason="torch without oneDNN")
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_same_numbers_by_other_products(approximate: linear.Gelu, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, fast = pair()
    x = torch.randn(3, 5, 24)
    usual_way: list[int] = []
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: usual_way.append(1) or F.linear(x, self.weight, self.bias)
    )
    with torch.no_grad():
        torch.testing.assert_close(fast(x), F.linear(x, usual.weight, usual.bias), rtol=0, atol=1e-5)
        expected = F.gelu(F.linear(x, usual.weight, usual.bias), approximate=approximate)
        torch.testing.assert_close(gelu_of(fast, x, approximate), expected, rtol=0, atol=1e-5)
    assert not usual_way
    with torch.inference_mode():
        fast(torch.randn(2, 24))
    assert not usual_way


def test_everything_else_is_as_ever() -> None:
    usual, fast = pair()
    x = torch.randn(3, 5, 24, requires_grad=True)
    assert torch.equal(fast(x), usual(x)) and torch.equal(
        gelu_of(fast, x, "tanh"), F.gelu(usual(x), approximate="tanh")
    )
    fast(x).sum().backward()
    assert fast.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16 and torch.equal(fast(x), usual(x))
    with torch.no_grad():
        assert torch.equal(fast.bfloat16()(x.bfloat16()), usual.bfloat16()(x.bfloat16()))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert fast.float()(mode.from_tensor(x.detach())).shape == (3, 5, 40)


@torch.no_grad()
def test_a_weight_that_hooks_gather_is_there_when_it_is_read() -> None:
    """ZeRO-3 keeps weights empty between calls."""
    usual, fast = pair()
    x, whole, calls = torch.randn(3, 24), fast.weight.data, []
    fast.weight.data = torch.empty(0)

    def gather(layer: nn.Module, _: object) -> None:
        layer.weight.data = whole

    def release(layer: nn.Module, *_: object) -> None:
        calls.append(layer.weight.data.shape)
        layer.weight.data = torch.empty(0)

    fast.register_forward_pre_hook(gather)
    fast.register_forward_hook(release)
    torch.testing.assert_close(gelu_of(fast, x, "tanh"), F.gelu(usual(x), approximate="tanh"), rtol=0, atol=1e-5)
    assert calls == [whole.shape] and fast.weight.shape == (0,)


@torch.no_grad()
def test_an_observer_sees_the_layer_itself() -> None:
    usual, fast = pair()
    x, seen = torch.randn(3, 24), []
    fast.register_forward_hook(lambda _layer, _given, output: seen.append(output))
    gelu_of(fast, x, "tanh")
    torch.testing.assert_close(seen[0], usual(x), rtol=0, atol=1e-5)
