"""The network, its loss and its solver give the numbers of the published code (thu-ml/RoboticsDiffusionTransformer)."""

from __future__ import annotations

import json
from pathlib import Path

import golden_files
import pytest
import torch
from golden_files import Golden

from vla_ft.config import EmaConfig
from vla_ft.policies.rdt import metrics
from vla_ft.policies.rdt.attention import ScaleNorm
from vla_ft.policies.rdt.conditions import Conditions
from vla_ft.policies.rdt.config import Config, LanguageConfig, VisionConfig
from vla_ft.policies.rdt.core import Core
from vla_ft.policies.rdt.diffusion import add_noise, kept_signal, solver, trajectory
from vla_ft.policies.rdt.embeddings import sinusoid
from vla_ft.policies.rdt.model import Rdt
from vla_ft.training.averages import Ema

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def tiny() -> Rdt:
    """The model that ``runner_weights`` fits; its tower is as small as its 4 image tokens allow."""
    return Rdt(
        Config(
            hidden_size=64,
            depth=3,
            heads=4,
            chunk_size=8,
            vision=VisionConfig(image_size=28, hidden_size=20, depth=1, heads=2, feedforward_dim=8),
            language=LanguageConfig(width=24, max_tokens=12),
        )
    )


@pytest.fixture
def model(golden_root: Path) -> Rdt:
    found = tiny()
    weights = golden_files.load(golden_root, "rdt/runner_weights").weights()
    lost = found.load_state_dict(weights, strict=False)
    assert not lost.unexpected_keys and all(key.startswith("vision.") for key in lost.missing_keys)
    return found


def conditions(golden: Golden) -> Conditions:
    return Conditions(
        state=golden["in.state_tokens"],
        mask=golden["in.action_mask"],
        action_mask=golden["in.action_mask"],
        rate=golden["in.ctrl_freqs"],
        language=golden["in.lang_tokens"],
        language_mask=golden["in.lang_mask"],
        valid=torch.ones(3, 2, 3, dtype=torch.bool),
    )


@pytest.mark.golden_files("rdt/core_forward")
def test_core(golden: Golden) -> None:
    core = Core(
        dim=64, depth=3, heads=4, horizon=8, out=128, language_tokens=12, image_grid=(2, 3), patches=4
    )  # fmt: skip
    core.load_state_dict(golden.weights())
    inputs = (golden["in.x"], golden["in.freq"], golden["in.t"], golden["in.lang_c"], golden["in.img_c"])
    seen: list[torch.Tensor] = []
    for block in core.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        golden.close(core(*inputs, golden["in.lang_mask"]), "out.y", **CLOSE)
        for number in range(3):
            golden.close(seen[number], f"inter.after_block_{number}", **CLOSE)
        golden.close(core(*inputs), "out.y_no_mask", **CLOSE)
        single = (*inputs[:2], golden["in.t"][:1], *inputs[3:])
        golden.close(core(*single, golden["in.lang_mask"]), "out.y_single_t", **CLOSE)
        golden.close(sinusoid(golden["in.t"]), "inter.t_sinusoid", **CLOSE)
        golden.close(core.t_embedder(golden["in.t"]), "inter.t_emb", **CLOSE)
        golden.close(core.freq_embedder(golden["in.freq"]), "inter.freq_emb", **CLOSE)


@pytest.mark.golden_files("rdt/core_forward")
def test_norm_is_the_published_one_and_no_other(golden: Golden) -> None:
    for kind in ("variance", "rms"):
        norm = ScaleNorm(64, kind)
        norm.weight.data = golden["norm.weight"]
        difference = (norm(golden["norm.in"]) - golden["norm.out"]).abs().max().item()
        assert (difference < 1e-5) == (kind == "variance")


@pytest.mark.golden_files("rdt/compute_loss")
def test_loss_and_gradients(golden: Golden, model: Rdt) -> None:
    kept = torch.tensor(kept_signal(1000))
    assert torch.equal(kept, golden["const.alphas_cumprod"])
    action, noise, time = golden["in.action_gt"], golden["fixed.noise"], golden["fixed.timesteps"]
    golden.close(add_noise(action, noise, time, 1000), "inter.noisy_action", rtol=0, atol=1e-6)
    rounded = add_noise(action.bfloat16(), noise.bfloat16(), time, 1000)
    assert torch.equal(rounded.float(), golden["inter.noisy_action_bf16"])

    loss = model.loss(conditions(golden), golden["in.img_tokens"], action, noise, time)
    golden.close(loss, golden["out.loss"][0], rtol=0, atol=1e-6)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == golden.facts["grad_norms"].keys()
    for name, gradient in gradients.items():
        assert gradient.norm().item() == pytest.approx(golden.facts["grad_norms"][name], rel=1e-4, abs=1e-6)
        if f"grad.{name}" in golden:
            golden.close(gradient, f"grad.{name}", **CLOSE)


@pytest.mark.golden_files("rdt/conditional_sample")
@torch.no_grad()
def test_sampling(golden: Golden, model: Rdt) -> None:
    given, noise = conditions(golden), golden["fixed.init_noise"]
    golden.close(model.sample_from(given, golden["in.img_tokens"], noise), "out.actions", **CLOSE)

    adapted = model.adapt(given, golden["in.img_tokens"])
    steps = trajectory(
        lambda noisy, time: model.denoise(given, *adapted, noisy, time),
        noise, steps=5, train_steps=1000, prediction="sample",
    )  # fmt: skip
    for number, (iterate, said) in enumerate(steps):
        golden.close(said, f"inter.model_output_{number}", **CLOSE)
        golden.close(iterate, f"inter.prev_sample_{number}", **CLOSE)


@pytest.mark.golden_files("rdt/solver")
def test_solver(golden: Golden) -> None:
    for count in (5, 10, 20):
        scheduler = solver(1000, "sample")
        scheduler.set_timesteps(count)
        assert torch.equal(scheduler.timesteps, golden[f"n{count}.timesteps"])
        golden.close(scheduler.sigmas, f"n{count}.sigmas", rtol=1e-6, atol=1e-6)
        target = golden[f"n{count}.target"]
        found = trajectory(
            lambda noisy, _, target=target: 0.3 * noisy + 0.7 * target,
            golden[f"n{count}.init"], steps=count, train_steps=1000, prediction="sample",
        )  # fmt: skip
        golden.close(torch.stack([iterate for iterate, _ in found]), f"n{count}.trajectory", **CLOSE)


@pytest.mark.golden_files("rdt/pos_embed_init")
def test_starting_positions(golden: Golden) -> None:
    core = tiny().model
    for name, value in golden.tensors.items():
        torch.testing.assert_close(getattr(core, name).detach(), value, rtol=0, atol=1e-6)


@pytest.mark.golden_files("rdt/ema")
def test_average(golden: Golden) -> None:
    settings = golden.facts["params"]
    config = EmaConfig(decay=settings["max_value"], power=settings["power"], inv_gamma=settings["inv_gamma"])
    for step, decay in golden.facts["get_decay"].items():
        assert config.decay_at(int(step)) == pytest.approx(decay, abs=1e-12)
    average = Ema({"weight": torch.zeros(2, 3)}, config)
    for step in range(6):
        average.update({"weight": golden[f"new.{step}.weight"]}, step)
        golden.close(average.average["weight"], f"ema.{step}.weight", rtol=0, atol=1e-6)


@pytest.mark.golden_files("rdt/sample_metrics")
def test_measures(golden: Golden) -> None:
    each, whole = {"mse": [], "l2err": []}, {"mse": [], "l2err": []}
    for batch in range(2):
        predicted, action = golden[f"pred.{batch}"], golden[f"actions.{batch}"]
        mask = golden[f"state_elem_mask.{batch}"]
        relative = metrics.relative_error(predicted, action, golden[f"state_norm.{batch}"])
        for name, error in {"mse": metrics.squared_error(predicted, action), "l2err": relative}.items():
            each[name].append(metrics.of_each(error, mask))
            whole[name].append(metrics.pooled(error, mask))
    for name in each:
        samples = torch.stack(each[name])  # datasets of each batch: a, b, a
        found = {
            f"ds_a_sample_{name}": samples[:, [0, 2]].mean(),
            f"ds_b_sample_{name}": samples[:, 1].mean(),
            f"overall_avg_sample_{name}": torch.stack(whole[name]).mean(),
        }
        for key, value in found.items():
            assert round(value.item(), 4) == golden.facts["expected"][key], key


@pytest.mark.golden_files("rdt/manifest_rdt-1b", "rdt/manifest_rdt-170m")
def test_names_shapes_and_counts(golden_root: Path, golden_case: str) -> None:
    published = json.loads((golden_root / f"{golden_case}.json").read_text())
    with torch.device("meta"):
        model = Rdt(Config() if golden_case.endswith("1b") else Config.small())
    shapes = {n: list(v.shape) for n, v in model.state_dict().items() if not n.startswith("vision.")}
    assert shapes == published["shapes"]
    groups = model.parameter_groups()
    counted = sum(p.numel() for part in ("adaptors", "core") for _, p in groups[part])
    assert counted == published["total_parameters"] == (1_228_319_872 if "1b" in golden_case else 166_229_888)
    assert sum(p.numel() for _, p in groups["vision"]) == 412_987_248  # 428,225,600 with the pooling head
