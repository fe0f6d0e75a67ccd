"""bfloat16 weights: small updates must not be lost, and copies of a share must stay copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vla_ft.config import OptimizerConfig
from vla_ft.training.optimizers import build_optimizer, restore_state
from vla_ft.training.rounding import COMPENSATION, Rounding, round_stochastically

ROUNDED = ("bf16_stochastic", "bf16_kahan")


class OnePart(nn.Module):
    """A model as optimizers see it: one part."""

    def __init__(self, dtype: torch.dtype, size: int = 8192) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(size, generator=generator).to(dtype))

    def parameter_groups(self):
        return {"action": [("weight", self.weight)]}


def step(model, optimizer, number):
    gradient = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(number + 1)) + 1
    model.weight.grad = gradient.to(model.weight.dtype)
    optimizer.step()


def trained(precision, steps=20, name="adamw", lr=1e-5, dtype=torch.bfloat16, noise=(0, 0)):
    model = OnePart(dtype)
    start = model.weight.detach().float().clone()
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=lr), precision=precision, noise=noise)
    for number in range(steps):
        step(model, optimizer, number)
    return model, optimizer, model.weight.detach().float() - start


def test_stochastic_rounding_is_right_on_average():
    values = torch.tensor([1.0 + 1 / 512, -1.0 - 1 / 1024, 3.14159, -2.71828e-3, 0.0, 65504.0])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([round_stochastically(values, generator).float() for _ in range(20_000)])
    low, high = draws.min(0).values, draws.max(0).values
    torch.testing.assert_close(high - low, torch.where(low == high, 0.0, values.abs().log2().floor().exp2() / 128))
    error = (draws.mean(0) - values).abs()
    assert (error <= 4 * (high - low) / 2 / 20_000**0.5 + 1e-12).all(), "four standard errors"


def test_numbers_that_fit_are_left_alone():
    exact = torch.randn(1000).to(torch.bfloat16)
    assert torch.equal(round_stochastically(exact.float(), torch.Generator()), exact)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("precision", ROUNDED)
def test_updates_below_half_a_place_move_weights_as_float32_would(precision, name):
    """20 updates of 1e-5 on weights of about 1, whose neighbours are 0.004 to 0.008 away."""
    _, optimizer, moved = trained(precision, name=name)
    _, _, expected = trained("fp32", dtype=torch.float32)
    if precision == "bf16_kahan":
        state = next(iter(optimizer.state.values()))
        moved = moved + state[COMPENSATION].float()
        torch.testing.assert_close(moved, expected, atol=3e-5, rtol=0)
    assert moved.mean().item() == pytest.approx(expected.mean().item(), rel=0.25)
    model, _, lost = trained("fp32")  # plain AdamW on the same bfloat16 weights
    assert model.weight.dtype == torch.bfloat16
    assert lost.mean().abs() < 0.2 * expected.mean().abs(), "rounding to nearest should have lost most updates"


@pytest.mark.parametrize("precision", ROUNDED)
def test_moments_are_float32(precision):
    _, optimizer, _ = trained(precision, steps=1)
    state = next(iter(optimizer.state.values()))
    assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype} == {torch.float32}


def test_copies_round_alike_and_shares_differ():
    first, again, other = (trained("bf16_stochastic", noise=noise)[2] for noise in ((3, 0), (3, 0), (3, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("precision", ["fp32", *ROUNDED])
def test_restored_state_continues_to_the_bit(precision, name):
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    whole, _, _ = trained(precision, steps=6, name=name, lr=1e-3, dtype=dtype)
    model, optimizer, _ = trained(precision, steps=3, name=name, lr=1e-3, dtype=dtype)
    entries = {k: v for k, v in optimizer.state[model.weight].items() if not k.startswith("qmap")}
    flat = {key: torch.as_tensor(value).clone().reshape(-1) for key, value in entries.items()}
    later = OnePart(dtype)
    later.weight.data.copy_(model.weight.data)
    continued = build_optimizer(later, OptimizerConfig(name=name, lr=1e-3), precision=precision)
    restore_state(continued, {"weight": later.weight}, {"weight": flat})
    for number in range(3, 6):
        step(later, continued, number)
    assert torch.equal(later.weight, whole.weight)


def test_kahan_carries_what_was_lost():
    rounding = Rounding("kahan", 0, 0)
    weight, state = torch.ones(1, dtype=torch.bfloat16), {}
    for number in range(100):
        exact = rounding.read(weight, state) + 1e-4
        rounding.write(weight, exact, state, number, 0)
    assert (weight.float() + state[COMPENSATION].float()).item() == pytest.approx(1.01, abs=5e-4), (
        "the compensation has eight bits of its own"
    )
    before = copy.deepcopy(weight)
    weight.copy_(weight.float() + 1e-4)
    assert torch.equal(weight, before), "plain rounding would have lost it"


def test_kernels_give_the_same_update():
    results = []
    for kernel in ("auto", "loop", "foreach", "fused"):
        model = OnePart(torch.float32)
        optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3, kernel=kernel))
        step(model, optimizer, 0)
        results.append(model.weight.detach().clone())
    assert torch.equal(results[0], results[1]), "auto is the loop on the CPU"
    for other in results[2:]:
        torch.testing.assert_close(results[0], other, rtol=1e-6, atol=1e-7)
