"""π0 as a policy: what freezing saves and leaves unchanged, cached prefixes, blocks, and the bad inputs it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pizero_examples import HORIZON, batch, description, model, small_config, statistics
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vla_ft.errors import UserError
from vla_ft.policies.base import Batch
from vla_ft.policies.frozen_parts import cacheable, compute_rows, leave_out, replaced_inputs, with_features
from vla_ft.policies.pizero import Config, build_model, build_processor, remarks
from vla_ft.policies.pizero.model import PREFIX, Dimensions, PiZero
from vla_ft.training.blocks import recompute_activations
from vla_ft.training.optimizers import freeze_parts

VARIANTS = [{}, {"tie_experts": False}, {"adaptive": "adaLN"}, {"adaptive": "adaLN-Zero"}]


def fixed(one: PiZero, data: Batch, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return one(data).loss


def gradients(one: PiZero, data: Batch) -> dict[str, Tensor]:
    one.zero_grad()
    fixed(one, data).backward()
    return {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_frozen_model_gives_the_same_numbers(changes: dict[str, Any]) -> None:
    whole, data = model(**changes), batch()
    with_graph = gradients(whole, data)
    loss = fixed(whole, data)
    freeze_parts(whole, ("vlm",))
    without = gradients(whole, data)
    assert fixed(whole, data).item() == pytest.approx(loss.item(), rel=1e-6)
    assert without and all(not name.startswith("vlm.") for name in without)
    for name, gradient in without.items():
        torch.testing.assert_close(gradient, with_graph[name], rtol=1e-6, atol=1e-7)


def saved_bytes(one: PiZero, data: Batch) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in one.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = fixed(one, data)
    del loss
    return sum(kept.values())


def test_a_frozen_model_leaves_no_graph_behind() -> None:
    whole, data = model(text_tokens=60, vision_layers=4), batch(text_tokens=60)
    before = saved_bytes(whole, data)
    freeze_parts(whole, ("vlm",))
    prefix = whole.prefix(data)
    assert not any(kept.requires_grad for layer in prefix for kept in layer)
    assert saved_bytes(whole, data) < before / 4, "only five tokens of the expert keep a graph"


def test_every_trained_weight_has_a_gradient() -> None:
    """DDP waits for all of them."""
    for changes in VARIANTS:
        one = model(**changes)
        found = gradients(one, batch())
        assert found.keys() == {name for name, p in one.named_parameters() if p.requires_grad}


def test_cached_prefixes_take_the_place_of_pictures() -> None:
    one, data = model(), batch()
    freeze_parts(one, ("vlm",))
    parts = cacheable(one, ["vlm"])
    rows = compute_rows(one, parts["vlm"], data)
    expected, actions = fixed(one, data), seeded(one, data)
    replaced = replaced_inputs(one, parts)
    cached = with_features(data, parts, rows, replaced, 1)
    assert replaced == {"image"} and "image" not in cached
    left_out = leave_out(one, parts["vlm"])
    assert len(left_out) == sum(name.startswith("vlm.") for name in model().state_dict())
    assert torch.equal(fixed(one, cached), expected) and torch.equal(seeded(one, cached), actions)
    assert rows[PREFIX].shape == (2, 3, 2, 1, one.config.prefix_tokens, one.config.head_dim)


@torch.no_grad()
def seeded(one: PiZero, data: Batch) -> Tensor:
    torch.manual_seed(4)
    return one.sample(data)


def test_blocks_computed_again_change_nothing() -> None:
    one, data = model(), batch()
    expected = gradients(one, data)
    recompute_activations(one)
    again = gradients(one, data)
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
    assert len(one.blocks()) == 2 + 3 + 3


def test_sampling_reads_no_targets_and_is_clipped() -> None:
    one, data = model(action_clip=0.5), batch()
    actions = seeded(one, data)
    assert actions.shape == (2, HORIZON, 7) and actions.abs().max() <= 0.5
    assert torch.equal(actions, seeded(one, {k: v for k, v in data.items() if not k.startswith("action")}))


def test_what_a_token_sees() -> None:
    """Padding changes nothing, instruction, picture and proprioception do, and one sample not another."""
    one, data = model(), batch()
    actions = seeded(one, data)
    longer = model(text_tokens=9)
    longer.load_state_dict(one.state_dict())
    torch.testing.assert_close(seeded(longer, batch(text_tokens=9)), actions, rtol=1e-5, atol=1e-5)
    for key in ("image", "text", "proprio"):
        changed = {name: value.clone() for name, value in data.items()}
        changed[key][1] = changed[key][1].flip(0)
        other = seeded(one, changed)
        torch.testing.assert_close(other[0], actions[0], rtol=1e-5, atol=1e-6)
        assert (other[1] - actions[1]).abs().max() > 1e-4, key


def test_bfloat16_and_float64_stay_finite() -> None:
    """Half precision rounds; double precision must not overflow where padding sees nothing."""
    one, data = model(), batch()
    expected = fixed(one, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fixed(one, data).item() == pytest.approx(expected.item(), rel=0.05)
    wide = {key: value.double() if value.is_floating_point() else value for key, value in data.items()}
    assert torch.isfinite(fixed(one.double(), wide))


@pytest.mark.parametrize("changes", VARIANTS)
def test_weights_in_bfloat16_need_no_autocast(changes: dict[str, Any]) -> None:
    """The published way of inference: float32 observations, bfloat16 noise and weights."""
    wide, half, data = model(**changes), model(**changes).to(torch.bfloat16), batch()
    actions = seeded(half, data)
    assert actions.dtype == torch.bfloat16
    assert (actions.float() - seeded(wide, data)).abs().mean() < 0.03
    assert fixed(half, data).item() == pytest.approx(fixed(wide, data).item(), rel=0.03)


def test_uniform_times_are_spread_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in each of B equal parts of [0, 1), whatever the offset."""
    seen: list[Tensor] = []
    usual = PiZero.predict
    monkeypatch.setattr(
        PiZero, "predict", lambda self, data, point, time: seen.append(time) or usual(self, data, point, time)
    )
    one, data = model(flow_sampling="uniform"), batch(4)
    for seed in range(3):
        fixed(one, data, seed)
        assert sorted((4 * seen[-1]).floor().int().tolist()) == [0, 1, 2, 3]
        assert torch.allclose(seen[-1].sort().values.diff(), torch.tensor(0.25), atol=2e-5)
    assert not torch.equal(seen[0], seen[1])
    fixed(model(), data)
    assert len({round(time, 6) for time in seen[-1].tolist()}) == 4


@pytest.mark.parametrize(
    ("about", "changes", "message"),
    [
        ({}, {"proprio_dim": 7}, r"has 8 proprio dimensions, this recipe is for 7. Bridge has 7 and Fractal 8"),
        ({}, {"action_dim": 14}, r"has 7 action dimensions, this recipe is for 14"),
        ({"cameras": {"a": (28, 28), "b": (28, 28)}}, {}, r"2 cameras \(a, b\).*data.cameras=\[a\]"),
        ({"cameras": {}}, {}, r"0 cameras"),
        ({"cameras": {"a": (48, 64)}}, {}, r"48x64, this model sees 28x28. Set data.image_size=\[28,28\]"),
        ({"proprio_names": (), "proprio_units": ()}, {}, "no proprioception"),
    ],
)
def test_datasets_that_do_not_fit(about: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(small_config(**changes), description(**about))
    with pytest.raises(UserError, match=message):
        build_processor(small_config(**changes), description(**about), statistics())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "whole patches"),
        ({"vision_heads": 3}, "no multiple of vision_heads"),
        ({"head_dim": 7}, "even head_dim"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"image_token": 64}, "less than vocab_size"),
        ({"text_tokens": 2}, "3 or more"),
        ({"adaptive": "adaLN", "time_width": 7}, "even 4 or more"),
    ],
)
def test_impossible_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_config(**changes)


def test_flex_attention_does_not_train_on_the_cpu() -> None:
    one = model(attention="flex")
    with pytest.raises(UserError, match="cards alone"):
        one(batch())
    freeze_parts(one, ("vlm",))
    gradients(one, batch())  # the experts' five tokens are never flex's


def test_the_banner_counts_as_published() -> None:
    config = Config(tokenizer="paligemma-3b-pt-224")
    with torch.device("meta"):
        full = PiZero(config, Dimensions(action=7, proprio=7))
    counts = {part: sum(p.numel() for _, p in members) for part, members in full.parameter_groups().items()}
    assert (counts["action"], counts["vlm"]) == (314_636_295, 2_291_302_128)
    frozen = remarks(config, {**counts, "vlm": 0, "fixed": 0})
    assert frozen[0] == "Number of trained parameters (Action): 0.315B"
    assert not any("(VLM)" in line for line in frozen) and "did not work" in frozen[1]
    whole = remarks(config, {"vlm": counts["vlm"], "action": counts["action"]})
    assert whole == [
        "Number of trained parameters (VLM): 2.291B",
        "Number of trained parameters (Action): 0.315B",
    ]
    assert "stand-in" in remarks(small_config(), {"vlm": 1, "action": 1})[-1]


def test_padded_steps_count_in_the_loss_as_published() -> None:
    data, one = batch(), model()
    assert not data["action_pad_mask"][:, -1].any()
    whole = fixed(one, data)
    assert torch.equal(fixed(one, {**data, "action_pad_mask": torch.ones_like(data["action_pad_mask"])}), whole)
