from __future__ import annotations

import logging

import pytest
import torch
from engine_runs import QUIET
from narrow_trunk import DESCRIPTION, batch, narrow_trunk
from torch import nn

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.policies.compiling import compile_blocks, require_compiler
from vla_ft.policies.registry import load_policy
from vla_ft.training.adapters import add_adapters
from vla_ft.training.banner import frozen_parts
from vla_ft.training.blocks import recompute_activations
from vla_ft.training.preparation import prepare_model


def configured(*words):
    return load_run_config([*QUIET, "output=unused", *words])


def build(config):
    torch.manual_seed(0)
    with narrow_trunk():
        return load_policy("act").build_model(config.model, DESCRIPTION)


@torch.no_grad()
def test_fresh_adapters_change_nothing_and_trained_ones_merge():
    config = configured("lora.action.rank=3", "lora.action.alpha=12", "lora.action.layers=(encoder|decoder).*")
    plain, adapted = build(config), build(config)
    add_adapters(adapted, config)
    adapted.requires_grad_(True)  # torch multiplies by frozen weights in another order: 1e-7 apart without this
    assert torch.equal(plain.eval().sample(batch()), adapted.eval().sample(batch()))
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    weights = dict(plain.named_parameters())
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A"):
            update = module.lora_B["default"].weight @ module.lora_A["default"].weight
            weights[f"{name}.weight"].add_(update, alpha=12 / 3)
    expected = plain.sample(batch())
    for _ in range(3):  # switching modes must neither merge nor forget
        adapted.train()
        torch.testing.assert_close(adapted.sample(batch()), expected, atol=1e-6, rtol=1e-6)
        adapted.eval()
        torch.testing.assert_close(adapted.sample(batch()), expected, atol=1e-6, rtol=1e-6)


def test_what_trains_is_the_adapters_and_the_other_parts():
    config = configured("lora.action.rank=2")
    model = build(config)
    prepare_model(model, config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all((".lora_" in name) != name.startswith("vision.trunk.") for name in trained)
    names = {name for members in model.parameter_groups().values() for name, _ in members}
    assert names == dict(model.named_parameters()).keys()
    assert not [n for n in names if "self_attn.out_proj" in n and ".lora_" in n], "torch's attention reads that weight"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lora.backbone.rank=2",), "Part 'backbone' has no linear layers"),
        (("lora.actoin.rank=2",), "Did you mean 'action'"),
        (("lora.action.layers=linear1",), "matches none of the .* linear layers of 'action', such as encoder"),
        (("lora.action.layers=(",), "no regular expression"),
        (("lora.action.rank=2", "freeze=[action]"), "its adapters would be frozen"),
    ],
)
def test_mistakes(words, message):
    config = configured(*words)
    with pytest.raises(UserError, match=message):
        add_adapters(build(config), config)


def test_recomputed_blocks_give_the_same_gradients_to_the_bit():
    config = configured("model.dropout=0.3")
    results = []
    for recompute in (False, True):
        model = build(config)
        names = list(model.state_dict())
        if recompute:
            recompute_activations(model)
        assert list(model.state_dict()) == names
        torch.manual_seed(5)
        loss = model.train()(batch()).loss
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (loss, gradients), (other, others) = results
    assert torch.equal(loss, other)
    assert len(gradients) == len(others) and all(map(torch.equal, gradients, others))


def test_recomputing_really_keeps_less():
    config = configured()
    kept = []
    for recompute in (False, True):
        model = build(config)
        if recompute:
            recompute_activations(model)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model.train()(batch(4))
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.nightly
def test_compiled_blocks_give_the_same_loss():
    config = configured()
    model = build(config)
    expected = model(batch()).loss
    names = list(model.state_dict())
    compile_blocks(model, torch.device("cpu"))
    seen = model(batch()).loss
    seen.backward()
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
    assert list(model.state_dict()) == names


def test_a_missing_compiler_is_a_sentence(monkeypatch):
    def broken(function):
        def run(_x):
            raise RuntimeError("No working C++ compiler found\nmore lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"failed: No working C\+\+ compiler found. Set compile=false"):
        require_compiler(torch.device("cpu"))


def test_types_follow_the_configuration():
    config = configured("freeze=[backbone]", "precision=bf16_kahan", "frozen_dtype=fp32")
    model = build(config)
    prepare_model(model, config)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.requires_grad else torch.float32), name
    assert all(b.dtype == torch.float32 for b in model.buffers())
    assert isinstance(model.vision.trunk.conv1, nn.Conv2d)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing"),
        (["freeze=[backbone]"], "backbone"),
        (["lora.action.rank=4"], "action's own weights, under adapters"),
        (["freeze=[backbone]", "lora.action.rank=4"], "backbone; action's own weights, under adapters"),
    ],
)
def test_the_banner_says_what_adapters_freeze(words, said):
    assert frozen_parts(configured(*words)) == said


def test_a_hint_about_layers_that_nobody_uses_is_not_printed(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please ...", "No module")
    logger.warning("another")
    assert [one.getMessage() for one in caplog.records] == ["another"]
