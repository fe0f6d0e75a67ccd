"""CogACT as a policy: repeated diffusion, masks, freezing by part, cached cognition features, adapters, memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cogact_examples import HORIZON, batch, model
from torch import Tensor

from vla_ft.config import LoraConfig, load_run_config
from vla_ft.errors import UserError
from vla_ft.planning.states import GIB, states
from vla_ft.policies.base import Batch, Loss
from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.diffusion import add_noise
from vla_ft.policies.cogact.dit import ConditionEmbedder
from vla_ft.policies.cogact.model import COGNITION, CogAct
from vla_ft.policies.frozen_parts import cacheable, compute_rows, leave_out, replaced_inputs, with_features
from vla_ft.training.adapters import add_adapters
from vla_ft.training.blocks import recompute_activations
from vla_ft.training.compatibility import Setup, refusals
from vla_ft.training.optimizers import freeze_parts

VLM = ("vision", "projector", "llm")


def fixed(one: CogAct, data: Batch, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return one(data).loss


def gradients(one: CogAct, data: Batch) -> dict[str, Tensor]:
    one.zero_grad()
    fixed(one, data).backward()
    return {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}


def test_every_trained_weight_has_a_gradient_and_no_other() -> None:
    """DDP waits for all of them; what nothing reads is frozen from the start."""
    one = model()
    assert gradients(one, batch()).keys() == {name for name, p in one.named_parameters() if p.requires_grad}
    unread = {name for name, p in one.named_parameters() if not p.requires_grad}
    assert {"vlm.llm.lm_head.weight", "head.history_embedder.linear.weight"} < unread


def test_repeated_steps_take_effect() -> None:
    """Each copy has its own noise and step; the vision-language model runs once for all."""
    data, seen = batch(), []
    for repeats in (1, 4):
        one = model(repeated_diffusion_steps=repeats, condition_dropout=0.0)
        calls: list[int] = []
        one.vlm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        shapes: list[tuple[int, ...]] = []
        one.head.register_forward_pre_hook(lambda _, given, shapes=shapes: shapes.append(tuple(given[0].shape)))
        seen.append(fixed(one, data).item())
        assert calls == [1] and shapes == [(2 * repeats, HORIZON, 7)]
    assert seen[0] != seen[1]
    one = model(repeated_diffusion_steps=2, condition_dropout=0.0)
    noise, step = torch.randn(4, HORIZON, 7), torch.tensor([3, 50, 70, 99])
    whole = one.loss(data, noise=noise, step=step).loss
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        alone = model(repeated_diffusion_steps=1, condition_dropout=0.0)
        halves.append(alone.loss(data, noise=noise[part], step=step[part]).loss)
    assert whole.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-5)


def test_padded_steps_count_as_published_unless_masked() -> None:
    data = batch()
    real = data["action_pad_mask"].repeat(3, 1)
    assert 0 < (~real).sum() < real.sum()
    torch.manual_seed(0)
    noise, step = torch.randn(6, HORIZON, 7), torch.randint(100, (6,))
    drop = torch.zeros(6, dtype=torch.bool)

    def loss(data: Batch, masked: bool) -> Loss:
        return model(loss_mask=masked).loss(data, noise=noise, step=step, drop=drop)

    one = model()
    noisy = add_noise(one.schedule, data["action"].repeat(3, 1, 1), noise, step)
    error = (one.head(noisy, step, one.cognition(data).repeat(3, 1, 1), drop) - noise).square()
    assert loss(data, masked=False).loss.item() == pytest.approx(error.mean().item(), rel=1e-5)
    masked = loss(data, masked=True)
    assert masked.loss.item() == pytest.approx(error[real].mean().item(), rel=1e-5)
    assert masked.loss.item() != pytest.approx(error.mean().item(), rel=1e-2)
    assert masked.metrics["mse"] == masked.loss.detach()
    nothing = {**data, "action_pad_mask": torch.zeros_like(data["action_pad_mask"])}
    assert loss(nothing, masked=True).loss == 0


def test_a_tenth_is_trained_without_condition() -> None:
    embedder = ConditionEmbedder(4, 8, 0.1)
    torch.nn.init.constant_(embedder.uncondition, 5.0)
    z = torch.zeros(10_000, 1, 4)
    blank = embedder.linear(torch.full((4,), 5.0))
    torch.manual_seed(0)
    with torch.no_grad():
        seen = embedder(z)
        dropped = (seen - blank).abs().amax((1, 2)) < 1e-5
        assert 0.09 < dropped.float().mean() < 0.11
        torch.testing.assert_close(seen[~dropped], embedder.linear(z)[~dropped])
        assert torch.equal(embedder.eval()(z), embedder.linear(z)), "none outside training"


def test_each_tower_sees_pixels_by_its_own_numbers() -> None:
    """DINOv2 by ImageNet's mean and deviation, SigLIP by a half of each, written out here."""
    towers = model().vlm.vision
    images = batch()["image"]
    scaled = images.permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = towers.fuse((scaled - mean) / deviation, scaled * 2 - 1)
        torch.testing.assert_close(towers(images), expected, rtol=0, atol=1e-5)
        swapped = towers.fuse(scaled * 2 - 1, (scaled - mean) / deviation)
    assert (swapped - expected).abs().max() > 1e-2


def test_a_frozen_part_is_left_alone() -> None:
    data = batch()
    for part in (*VLM, "head"):
        one = model()
        freeze_parts(one, (part,))
        prefix = "head." if part == "head" else f"vlm.{part}."
        found = gradients(one, data)
        assert found and not any(name.startswith(prefix) for name in found)


def test_cached_cognition_features_train_the_head_alike() -> None:
    one, data = model(), batch()
    freeze_parts(one, VLM)
    one.train()
    parts = cacheable(one, ["vlm"])
    rows = compute_rows(one, parts["vlm"], data)
    assert rows[COGNITION].shape == (2, 1, one.config.llama.width)
    uncached = gradients(one, data)
    expected = fixed(one, data)
    torch.manual_seed(5)
    actions = one.sample(data)
    replaced = replaced_inputs(one, parts)
    cached = with_features(data, parts, rows, replaced, 1)
    assert replaced == {"image", "tokens", "token_mask"} and not replaced & cached.keys()
    leave_out(one, parts["vlm"])
    assert torch.equal(fixed(one, cached), expected)
    seen = gradients(one, cached)
    assert seen.keys() == uncached.keys() and all(torch.equal(seen[name], value) for name, value in uncached.items())
    torch.manual_seed(5)
    assert torch.equal(one.sample(cached), actions)
    assert len(one.blocks()) == 2 and [len(part) for part in one.parameter_groups().values()][:3] == [0, 0, 0]


def test_a_trained_part_cannot_be_cached() -> None:
    one = model()
    freeze_parts(one, ("vision", "llm"))
    with pytest.raises(UserError, match=r"freeze=\[vision,projector,llm\]"):
        cacheable(one, ["vlm"])


def test_blocks_computed_again_change_nothing() -> None:
    one, data = model(), batch()
    expected = gradients(one, data)
    recompute_activations(one)
    again = gradients(one, data)
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
    assert len(one.blocks()) == 2 + 2 + 2 + 2


def test_adapters_lie_where_something_is_read() -> None:
    one = model()
    config = dataclasses.replace(load_run_config(["recipe=cogact-mock"]), lora={"llm": LoraConfig(rank=2)})
    add_adapters(one, config)
    made = {name for name, _ in one.named_parameters() if ".lora_" in name}
    assert len(made) == 2 * 7 * 2 and not any("lm_head" in name for name in made)
    found = gradients(one, batch())
    assert found.keys() == {name for name, p in one.named_parameters() if p.requires_grad}


def test_adapters_in_the_head_lie_in_its_blocks_and_train() -> None:
    one, data = model(), batch()
    torch.manual_seed(1)
    expected = one.eval().sample(data)
    config = dataclasses.replace(load_run_config(["recipe=cogact-mock"]), lora={"head": LoraConfig(rank=2)})
    add_adapters(one, config)
    made = {name for name, _ in one.named_parameters() if ".lora_B." in name}
    for block in range(len(one.head.blocks)):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            assert f"head.blocks.{block}.{layer}.lora_B.default.weight" in made
    one.train()
    found = gradients(one, data)
    assert made < found.keys() and all(found[name].any() for name in made)
    torch.manual_seed(1)
    torch.testing.assert_close(one.eval().sample(data), expected, rtol=1e-4, atol=1e-5)
    torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=1.0).step()
    torch.manual_seed(1)
    assert (one.sample(data) - expected).abs().max() > 1e-4


def test_what_a_token_sees() -> None:
    """Padding changes nothing, instruction and picture do, and one sample not another."""
    one, data = model().eval(), batch()
    feature = one.cognition(data)
    alone = {key: value[:1] for key, value in data.items()}
    length = int(data["token_mask"][0].sum())
    alone |= {key: alone[key][:, :length] for key in ("tokens", "token_mask")}
    torch.testing.assert_close(one.cognition(alone), feature[:1], rtol=1e-4, atol=1e-5)
    for key in ("image", "tokens"):
        changed = {name: value.clone() for name, value in data.items()}
        changed[key][1, 4:8] = changed[key][1, 4:8].flip(0) if key == "tokens" else 255 - changed[key][1, 4:8]
        other = one.cognition(changed)
        torch.testing.assert_close(other[0], feature[0])
        assert (other[1] - feature[1]).abs().max() > 1e-5, key


def test_half_precision_stays_close() -> None:
    one, data = model(condition_dropout=0.0), batch()
    expected = fixed(one, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fixed(one, data).item() == pytest.approx(expected.item(), rel=0.05)
    half = model(condition_dropout=0.0).to(torch.bfloat16)
    assert fixed(half, data).item() == pytest.approx(expected.item(), rel=0.1)


@pytest.mark.parametrize(
    ("recipe", "cards"),
    [
        ("cogact-base", 8), ("custom-finetune", 4), ("cogact-base-4x22gb", 4), ("cogact-base-lora-24gb", 1),
        ("cogact-head-cached", 1),
    ],
)  # fmt: skip
def test_every_recipe_is_possible(recipe: str, cards: int) -> None:
    config = load_run_config([f"recipe={recipe}", "data.path=mock"])
    assert refusals(Setup.of(config, cards, cards)) == []
    with torch.device("meta"):
        one = CogAct(config.model, 7)
    freeze_parts(one, config.freeze)
    assert set(config.freeze) | set(config.lora) <= set(one.parameter_groups())
    if config.frozen_features is not None:
        assert cacheable(one, config.frozen_features.parts)


def test_the_documents_memory_and_ours() -> None:
    """28.4 GiB a card is 16 bytes for all 7,630,224,071 weights on four; the 174 million that nothing reads cost us
    four bytes, which makes 27.9. Neither fits 22 GiB; weights, gradients and moments in seven bytes do."""
    with torch.device("meta"):
        one = CogAct(Config(), 7)
    trained = sum(p.numel() for p in one.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in one.parameters())
    assert whole == 7_630_224_071 and whole - trained == 131_334_144 + 12_600_320 + 30_480_160 + 8 * 768
    asked = load_run_config(["recipe=custom-finetune", "data.path=mock"])
    setup = Setup.of(asked, 4, 4)
    assert states(whole, 0, setup).total / GIB == pytest.approx(28.4, abs=0.05)
    assert states(trained, whole - trained, setup).total / GIB == pytest.approx(27.9, abs=0.05)
    fits = Setup.of(load_run_config(["recipe=cogact-base-4x22gb", "data.path=mock"]), 4, 4)
    assert states(trained, whole - trained, fits).total / GIB == pytest.approx(10.7, abs=0.15)
    kahan = dataclasses.replace(fits, precision="bf16_kahan")
    assert states(trained, whole - trained, kahan).total / GIB == pytest.approx(14.2, abs=0.15)
