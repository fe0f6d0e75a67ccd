"""CogACT's network: schedule tables, the diffusion head, its samplers, and the whole forward pass from pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_files import Golden
from torch import Tensor

from vla_ft.policies.cogact.config import Config, LlamaShape
from vla_ft.policies.cogact.diffusion import STEPS, Schedule, add_noise, ddim_counts, guided, sample_ddim, sample_ddpm
from vla_ft.policies.cogact.dit import Dit, DitShape
from vla_ft.policies.cogact.language import Projector
from vla_ft.policies.cogact.layouts import own_name, published_name
from vla_ft.policies.cogact.model import CogAct
from vla_ft.policies.cogact.vision import TowerShape

FORWARD, SAMPLING = 1e-5, 2e-5
"""Tolerances of the golden README: largest error by largest value."""


def close(actual: Tensor, expected: Tensor, share: float) -> None:
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= share, f"{float(error):.2e}"


def head_of(golden: Golden) -> Dit:
    facts = golden.facts
    head = Dit(
        DitShape(width=facts["hidden_size"], depth=facts["depth"], heads=facts["num_heads"]),
        horizon=facts["future_action_window_size"] + 1,
        action_dim=facts["in_channels"],
        condition_dim=facts["token_size"],
        drop=0.1,
    )
    head.load_state_dict({k.removeprefix("weights/net."): v for k, v in golden.tensors.items() if "weights/" in k})
    return head.eval()


def predictor(head: Dit, z: Tensor, scale: float | None):
    """The noise predictor that the samplers call; ``scale`` None is without guidance."""
    empty = head.z_embedder.uncondition.expand_as(z)

    def predict(x: Tensor, step: Tensor) -> Tensor:
        if scale is None:
            return head(x, step, z)
        return guided(head(x, step, z), head(x, step, empty), scale)

    return predict


@pytest.mark.golden_files("cogact/diffusion_tables")
def test_tables(golden: Golden) -> None:
    whole = Schedule.cosine()

    def same(values, name: str) -> None:
        torch.testing.assert_close(torch.from_numpy(values), golden[f"steps100/{name}"], rtol=1e-12, atol=0)

    same(whole.kept, "alphas_cumprod")
    same(whole.betas, "betas")
    for value, name in zip(
        whole.posterior,
        ("posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance", "posterior_log_variance_clipped"),
        strict=True,
    ):
        same(value, name)
    assert ddim_counts(STEPS) == golden.facts["valid_ddim_step_counts"]["100"]
    for count in golden.facts["ddim"]:
        part = whole.respaced(count)
        assert part.steps.tolist() == golden[f"steps100/ddim{count}/timestep_map"].tolist()
        same(part.kept, f"ddim{count}/alphas_cumprod")
        same(part.kept_before, f"ddim{count}/alphas_cumprod_prev")
        same(part.betas, f"ddim{count}/betas")


@pytest.mark.golden_files("cogact/action_model_*")
def test_head(golden: Golden) -> None:
    head, facts = head_of(golden), golden.facts
    x, step, z = golden["in/x"], golden["in/t"], golden["in/z"]
    empty = head.z_embedder.uncondition.expand_as(z)
    close(head.t_embedder(step), golden["out/t_embed"], FORWARD)
    close(head(x, step, z), golden["out/forward_cond"], FORWARD)
    close(head(x, step, empty), golden["out/forward_uncond"], FORWARD)
    for i, scale in enumerate(facts["cfg_scales"]):
        both = predictor(head, z, scale)(x, step)
        close(torch.cat((both, both)), golden[f"out/forward_cfg_{i}"], FORWARD)


@pytest.mark.golden_files("cogact/action_model_*")
def test_loss_and_every_gradient(golden: Golden) -> None:
    head = head_of(golden)
    clean, noise, step = golden["in/loss_x0"], golden["in/loss_noise"], golden["in/loss_t"]
    noisy = add_noise(Schedule.cosine(), clean, noise, step)
    close(noisy, golden["out/loss_x_t"], FORWARD)
    z = golden["in/z"].clone().requires_grad_()
    predicted = head(noisy, step, z)
    close(predicted, golden["out/loss_noise_pred"], FORWARD)
    loss = (predicted - noise).square().mean()
    close(loss, golden["out/loss"], FORWARD)
    loss.backward()
    close(z.grad, golden["out/loss_grad_z"], FORWARD)
    named = dict(head.named_parameters())
    for key in golden.tensors:
        if key.startswith("out/loss_grad/"):
            close(named[key.removeprefix("out/loss_grad/net.")].grad, golden[key], FORWARD)
    dropped = head(noisy, step, golden["in/z"], golden["in/drop_u"].flatten() < 0.1)
    close((dropped - noise).square().mean(), golden["out/loss_train_mode"], FORWARD)


@pytest.mark.golden_files("cogact/action_model_*")
def test_sampling(golden: Golden) -> None:
    head, z, noise, whole = head_of(golden), golden["in/z"], golden["in/sample_noise"], Schedule.cosine()
    with torch.no_grad():
        for key in golden.tensors:
            if not key.startswith("out/dd") or key.endswith("_steps"):
                continue
            sampler, guidance = key.removeprefix("out/").split("_", 1)
            scale = None if guidance == "nocfg" else golden.facts["cfg_scales"][int(guidance[-1])]
            if sampler.startswith("ddim"):
                got = sample_ddim(predictor(head, z, scale), noise, whole.respaced(int(sampler[4:])))
            else:
                drawn = iter(golden["in/ddpm_step_noise"])
                got = sample_ddpm(predictor(head, z, scale), noise, whole, lambda x, d=drawn: next(d)[: len(x)])
            close(got, golden[key], SAMPLING)


@pytest.mark.golden_files("cogact/projector")
def test_projector(golden: Golden) -> None:
    facts = golden.facts
    projector = Projector(facts["fused_vision_dim"], facts["llm_dim"])
    projector.load_state_dict({k.removeprefix("weights/"): v for k, v in golden.tensors.items() if "weights/" in k})
    close(projector(golden["in/patches"]), golden["out/projected"], FORWARD)


def tiny(golden: Golden) -> CogAct:
    facts = golden.facts

    def tower(name: str) -> TowerShape:
        part = facts["vision"][name]
        return TowerShape(
            width=part["embed_dim"],
            depth=part["depth"],
            heads=part["num_heads"],
            feedforward=int(part["embed_dim"] * part["mlp_ratio"]),
            registers=part.get("reg_tokens", 0),
            layer_scale=part.get("layer_scale", False),
            pool=name == "siglip",
        )

    class Tiny(Config):
        towers = (tower("dino"), tower("siglip"))
        llama = LlamaShape(
            width=facts["llm"]["hid"],
            depth=facts["llm"]["layers"],
            heads=facts["llm"]["heads"],
            feedforward=facts["llm"]["inter"],
            vocabulary=facts["llm"]["vocab"],
        )
        dit = DitShape(
            width=facts["action_model"]["hidden"],
            depth=facts["action_model"]["depth"],
            heads=facts["action_model"]["heads"],
        )

    config = Tiny(
        image_size=facts["vision"]["image_size"],
        future_action_window_size=facts["action_model"]["fut"],
        repeated_diffusion_steps=facts["repeated_diffusion_steps"],
    )
    model = CogAct(config, facts["action_model"]["adim"])
    weights = {k.removeprefix("weights/"): v for k, v in golden.tensors.items() if k.startswith("weights/")}
    model.load_state_dict({own_name(key): value for key, value in weights.items()})
    return model.eval()


@pytest.mark.golden_files("cogact/vlm_tiny")
def test_whole_forward_pass(golden: Golden) -> None:
    model = tiny(golden)
    vlm = model.vlm
    patches = vlm.vision.fuse(golden["in/pixel_values.dino"], golden["in/pixel_values.siglip"])
    close(patches, golden["out/patch_features"], FORWARD)
    projected = vlm.projector(patches)
    close(projected, golden["out/projected"], FORWARD)
    tokens, mask = golden["in/input_ids"], golden["in/attention_mask"].bool()
    states = vlm.llm(projected, tokens, mask)
    lengths = patches.shape[1] + mask.sum(1)
    for row, length in enumerate(lengths):
        close(states[row, :length], golden["out/last_hidden_state"][row, :length], FORWARD)
    feature = vlm.llm.cognition(projected, tokens, mask)
    close(feature, golden["out/cognition_features"], FORWARD)
    batch = {"feature_cognition": feature, "action": golden["in/actions"]}
    loss = model.loss(batch, noise=golden["in/loss_noise"], step=golden["in/loss_t"]).loss
    close(loss, golden["out/loss"], FORWARD)


def test_counts_and_names_of_the_published_sizes(golden_root: Path) -> None:
    """Against "cogact/keys_*" and "cogact/param_counts"."""
    folder = golden_root / "cogact"
    if not (folder / "param_counts.json").is_file():
        pytest.skip("cogact/param_counts is not under this root")
    totals = {"DiT-S": 7_553_713_991, "DiT-B": 7_630_224_071, "DiT-L": 7_849_001_415}
    shared = {part: json.loads((folder / f"keys_{part}.json").read_text()) for part in LAYOUT}
    for name, total in totals.items():
        with torch.device("meta"):
            model = CogAct(Config(action_model_type=name), 7)
        assert sum(p.numel() for p in model.parameters()) == total
        published = {**shared, "action_model": json.loads((folder / f"keys_action_model_{name}.json").read_text())}
        expected = {f"{part}.{key}": tuple(shape) for part, keys in published.items() for key, shape in keys.items()}
        assert {published_name(k): tuple(v.shape) for k, v in model.state_dict().items()} == expected


LAYOUT = ("vision_backbone", "projector", "llm_backbone")
