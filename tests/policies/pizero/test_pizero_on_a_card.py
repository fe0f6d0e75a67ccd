"""π0 where there is a CUDA card: flex_attention forward and backward, compiled blocks, half precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pizero_examples import batch, model
from torch import Tensor

from vla_ft.policies.base import Batch
from vla_ft.policies.compiling import compile_blocks
from vla_ft.policies.pizero.model import PiZero

pytestmark = pytest.mark.gpu
# Triton's attention kernels take heads of 16 numbers or more.
SHAPE = {"head_dim": 64, "vlm_width": 128, "expert_width": 64, "text_tokens": 20}


def on_card(one: PiZero) -> PiZero:
    return one.to("cuda")


def data() -> Batch:
    return {key: value.to("cuda") for key, value in batch(**SHAPE).items()}


def step(one: PiZero, seen: Batch) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(0)
    noise, time = torch.randn_like(seen["action"]), torch.rand(len(seen["action"]), device="cuda")
    loss = one.loss(seen, noise, time).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}


def test_flex_attention_trains_as_eager_does() -> None:
    eager, seen = on_card(model(**SHAPE)), data()
    flex = on_card(PiZero(dataclasses.replace(eager.config, attention="flex"), eager.dimensions))
    flex.load_state_dict(eager.state_dict())
    (expected, gradients), (loss, own) = step(eager, seen), step(flex, seen)
    assert loss == pytest.approx(expected, rel=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=2e-3, atol=2e-4, msg=name)


def test_compiled_blocks_give_the_same_actions() -> None:
    plain, seen = on_card(model(**SHAPE)).eval(), data()
    compiled = on_card(model(**SHAPE)).eval()
    compile_blocks(compiled, torch.device("cuda"))
    noise = torch.randn_like(seen["action"])
    with torch.no_grad():
        torch.testing.assert_close(
            compiled.sample_from(seen, noise), plain.sample_from(seen, noise), rtol=1e-3, atol=1e-3
        )


def test_bfloat16_weights_sample_close_to_float32() -> None:
    wide, seen = on_card(model(**SHAPE)).eval(), data()
    half = on_card(model(**SHAPE)).eval().to(torch.bfloat16)
    noise = torch.randn_like(seen["action"])
    low = {key: value.bfloat16() if value.is_floating_point() else value for key, value in seen.items()}
    with torch.no_grad():
        difference = half.sample_from(low, noise.bfloat16()).float() - wide.sample_from(seen, noise)
    assert difference.abs().mean() < 0.05
