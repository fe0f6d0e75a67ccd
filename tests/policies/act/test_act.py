"""The ACT model: sizes to the unit, losses, masks, latents, and that it learns."""

from __future__ import annotations

from typing import Any

import act_examples
import pytest
import torch
from act_examples import batch, description, small_config
from torch import nn

from vla_ft.errors import UserError
from vla_ft.policies.act import Config, build_model
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.policies.base import count_parameters

FORMS = {
    "default": small_config(),
    "original": Config.original(**act_examples.SIZES),
    "lerobot": Config.lerobot(**{**act_examples.SIZES, "decoder_layers": 1}),
    "no_vae": small_config(use_vae=False),
    "pre_norm_glu": small_config(pre_norm=True, activation="glu"),
}


DIMENSIONS = Dimensions(cameras=("top", "wrist"), action=act_examples.ACTIONS, proprio=act_examples.PROPRIO)


class SmallTrunk(nn.Sequential):
    """Two convolutions in place of a ResNet, for speed."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Conv2d(8, 8, 4, stride=4))


def model_of(**changes: Any) -> Act:
    torch.manual_seed(0)
    return build_model(small_config(**changes), description())


@pytest.mark.parametrize(
    ("config", "width", "parameters"),
    [
        (Config.original(), 14, 83_923_087),
        (Config.original(chunk_size=50), 14, 83_897_487),
        (Config.original(decoder_layers=1), 14, 51_614_095),
        (Config.lerobot(), 14, 51_613_582),
        (Config.lerobot(), 6, 51_597_190),
    ],
)
def test_published_sizes(config: Config, width: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Act(config, Dimensions(cameras=("top", "left", "right"), action=width, proprio=width))
    counts = {name: total for name, total, _ in count_parameters(model.parameter_groups())}
    assert counts == {"backbone": 11_166_912, "action": parameters - 11_166_912}
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_state_of_the_original_to_the_unit() -> None:
    with torch.device("meta"):
        state = Act(Config.original(), Dimensions(cameras=("top",), action=14, proprio=14)).state_dict()
    assert (len(state), sum(v.numel() for v in state.values())) == (344, 83_994_511)


@pytest.mark.parametrize("form", FORMS)
def test_every_trained_parameter_gets_a_gradient(form: str) -> None:
    """DDP waits for them all; the original's unread decoder layers get exact zeros."""
    model = build_model(FORMS[form], description())
    model(batch()).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    unread = model.decoder.layers[-1].linear1.weight.grad
    assert unread is not None
    assert bool(unread.abs().sum() == 0) == (form == "original")


@pytest.mark.parametrize("form", ["default", "original", "no_vae"])
def test_it_learns(form: str) -> None:
    """Actions that follow from the joints: after some steps the prediction is far closer than the mean action."""
    torch.manual_seed(0)
    model, data = Act(FORMS[form], DIMENSIONS, SmallTrunk()), batch(8)
    data["action"] = (
        data["proprio"][:, None, : act_examples.ACTIONS] * torch.linspace(1, 2, act_examples.CHUNK)[:, None]
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    first = model(data).loss.item()
    for _ in range(120):
        optimizer.zero_grad()
        model(data).loss.backward()
        optimizer.step()
    real = data["action"][data["action_pad_mask"]]
    assert model(data).loss.item() < 0.3 * first
    assert distance(model, data) < 0.5 * (real - real.mean(0)).abs().mean().item()


def distance(model: Act, data: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        error = (model.eval().sample(data) - data["action"]).abs()
    model.train()
    return error[data["action_pad_mask"]].mean().item()


@pytest.mark.parametrize("form", FORMS)
def test_sampling_ignores_targets_and_chance(form: str) -> None:
    model, data = build_model(FORMS[form], description()).eval(), batch()
    with torch.no_grad():
        chunk = model.sample(data)
        other = model.sample({k: v for k, v in data.items() if not k.startswith("action")})
    assert chunk.shape == data["action"].shape
    assert torch.equal(chunk, other)


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_padded_steps_do_not_change_the_loss(reduction: str) -> None:
    model, data = model_of(loss_reduction=reduction), batch()
    noise = torch.randn(2, model.config.latent_dim)
    changed = {**data, "action": torch.where(data["action_pad_mask"][..., None], data["action"], torch.tensor(7.0))}
    assert not torch.equal(data["action"], changed["action"])
    torch.testing.assert_close(model.loss(data, noise).loss, model.loss(changed, noise).loss)
    real = {**data, "action": data["action"] + 1.0}
    assert not torch.allclose(model.loss(data, noise).loss, model.loss(real, noise).loss)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_loss_numbers(kind: str) -> None:
    """Four of six steps are real: averaging over all steps gives two thirds of averaging over the real ones."""
    valid, everything = model_of(action_loss=kind).eval(), model_of(action_loss=kind, loss_reduction="all").eval()
    data = batch()
    difference = (valid.sample(data) - data["action"])[data["action_pad_mask"]]
    expected = difference.abs().mean() if kind == "l1" else difference.square().mean()
    torch.testing.assert_close(valid(data).metrics[kind], expected.detach())
    torch.testing.assert_close(everything(data).metrics[kind], expected.detach() * 4 / 6)


def test_kl_reductions_and_weight() -> None:
    data, noise = batch(), torch.zeros(2, 4)
    summed, mean = model_of().loss(data, noise), model_of(kl_reduction="mean").loss(data, noise)
    torch.testing.assert_close(summed.metrics["kl"], mean.metrics["kl"] * 4)
    torch.testing.assert_close(summed.loss.detach(), summed.metrics["l1"] + 10 * summed.metrics["kl"])


def test_eval_latent() -> None:
    """``zero`` scores the policy that will run; ``posterior`` draws from the true actions, as published."""
    data = batch()
    plain = model_of().eval()
    assert torch.equal(plain(data).loss, plain(data).loss)
    assert "kl" not in plain(data).metrics
    published = model_of(eval_latent="posterior").eval()
    assert "kl" in published(data).metrics
    assert not torch.equal(published(data).loss, published(data).loss)


def test_noise_comes_from_the_default_generator() -> None:
    model, data = model_of(), batch()
    torch.manual_seed(3)
    first = model(data).loss
    torch.manual_seed(3)
    assert torch.equal(first, model(data).loss)
    assert not torch.equal(first, model(data).loss)


def test_groups_are_disjoint_and_complete_and_blocks_are_all_layers() -> None:
    model = model_of()
    groups = model.parameter_groups()
    names = [name for members in groups.values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(name.startswith("vision.trunk.") for name, _ in groups["backbone"])
    assert len(model.blocks()) == 8 + 1 + 1 + 2
    assert model.vision is not None
    declared = model.frozen_features()["backbone"]
    assert model.get_submodule(declared.module) is model.vision.trunk
    assert declared.inputs == ("image_top", "image_wrist")


def test_camera_layouts_agree_and_sizes_may_differ_in_sequence() -> None:
    rows, data = model_of(camera_layout="width").eval(), batch()
    torch.testing.assert_close(rows.sample(data), model_of().eval().sample(data), rtol=1e-4, atol=1e-5)
    mixed = description(cameras={"top": (32, 64), "wrist": (64, 64)})
    data["image_wrist"] = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    assert build_model(small_config(), mixed).sample(data).shape == data["action"].shape
    with pytest.raises(UserError, match=r"one height, got top 32x64, wrist 64x64.*camera_layout=sequence"):
        build_model(small_config(camera_layout="width"), mixed)


def test_images_are_resized_on_the_device() -> None:
    model = model_of(image_size=(64, 96))
    assert model.vision is not None
    prepared = model.vision.prepare(torch.full((2, 32, 64, 3), 255, dtype=torch.uint8))
    assert prepared.shape == (2, 3, 64, 96)
    torch.testing.assert_close(prepared[0, 0], torch.full((64, 96), (1 - 0.485) / 0.229))


def test_a_dataset_without_cameras_is_refused() -> None:
    with pytest.raises(UserError, match="'arm' has no cameras"):
        build_model(small_config(), description(cameras={}))


def test_one_graph_without_breaks() -> None:
    model, data = model_of(), batch()
    noise = torch.zeros(2, 4)
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(data, noise).loss, model.loss(data, noise).loss)


def test_bfloat16_autocast_keeps_the_loss_in_float32() -> None:
    model, data = model_of(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        reduced = model.loss(data, torch.zeros(2, 4)).loss
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, model.loss(data, torch.zeros(2, 4)).loss, rtol=0.05, atol=0.05)
