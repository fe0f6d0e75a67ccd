"""π0 against open-pi-zero: the forward pass in its parts, the loss and its gradients, inference, every variant."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from golden_files import Golden
from pizero_models import (
    assert_gradients,
    at,
    base,
    build,
    inputs,
    model_of,
    our_name,
    reference_weights,
)

from vla_ft.config import LoraConfig, RunConfig
from vla_ft.policies.pizero.checkpoint import load_state
from vla_ft.policies.pizero.flow import integrate
from vla_ft.policies.pizero.model import PiZero
from vla_ft.policies.pizero.vision import scale_pixels

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def shared(golden_root: Path) -> Golden:
    return base(golden_root)


@pytest.mark.golden_files("pizero/flow_base")
def test_picture_and_prompt(golden: Golden) -> None:
    model, batch = model_of(golden, golden), inputs(golden)
    tower = model.vlm.vision(batch["image"])
    golden.close(tower, "out.vision_tower", **CLOSE)
    golden.close(model.vlm.projector(tower), "out.projector", **CLOSE)
    golden.close(model.vlm.embed(batch["image"], batch["text"]), "out.image_text_embeds", **CLOSE)
    pixels = scale_pixels(golden["in.image_uint8"].permute(0, 2, 3, 1))
    golden.close(pixels, "in.pixel_values", **CLOSE)


@pytest.mark.golden_files("pizero/flow_base", "pizero/flow_adaln", "pizero/flow_adaln_zero")
def test_residual_stream_after_every_layer(golden: Golden, shared: Golden) -> None:
    """Our kinds of token run one after the other; the reference runs them side by side. The numbers are the same, but
    for padding, which averages over everything there is and which nobody reads."""
    model, batch = model_of(golden, shared), inputs(shared)
    seen: dict[str, list[torch.Tensor]] = {"vlm": [], "expert": []}
    for kind, stack in (("vlm", model.vlm.stack), ("expert", model.experts["action"])):
        for layer in stack.layers:
            layer.register_forward_hook(lambda _m, _i, out, kind=kind: seen[kind].append(out[0].detach()))
    points, time = at(model, shared)
    golden.close(model.code(time), "out.time_embedding", **CLOSE)
    model.predict(batch, points, time)
    for number in range(model.config.layers):
        if number < model.config.layers - 1:
            stream = golden[f"out.layer{number}.vlm"]
            valid = model.valid(batch["text"])
            golden.close(seen["vlm"][number][valid], stream[valid], rtol=1e-4, atol=1e-4)
            golden.close(seen["expert"][number][:, :1], f"out.layer{number}.proprio", rtol=1e-4, atol=1e-4)
        golden.close(seen["expert"][number][:, 1:], f"out.layer{number}.action", rtol=1e-4, atol=1e-4)


@pytest.mark.golden_files("pizero/flow_base", "pizero/flow_untied", "pizero/flow_adaln", "pizero/flow_adaln_zero")
def test_velocity_and_loss(golden: Golden, shared: Golden) -> None:
    model, batch = model_of(golden, shared), inputs(shared)
    points, time = at(model, shared)
    golden.close(model.predict(batch, points, time), "out.v_psi", rtol=1e-5, atol=2e-5)
    loss = model.loss(batch, shared["in.x0"], time).loss
    assert loss.item() == pytest.approx(golden.facts["loss"], rel=1e-5)


@pytest.mark.golden_files("pizero/flow_base", "pizero/flow_adaln", "pizero/flow_adaln_zero")
def test_gradients(golden: Golden, shared: Golden) -> None:
    model = model_of(golden, shared)
    model.loss(inputs(shared), shared["in.x0"], shared["in.t"]).loss.backward()
    assert_gradients(model, golden)
    # Of the last layer's queries: nothing reads them, but they are trained weights, and DDP waits for all of those.
    last = model.vlm.stack.layers[-1].self_attn.q_proj.weight.grad
    assert last is not None and not last.any()


@pytest.mark.golden_files("pizero/flow_untied", "pizero/flow_adaln", "pizero/flow_adaln_zero")
def test_inference_of_variants(golden: Golden, shared: Golden) -> None:
    """Adaptive experts keep proprioception at time 0, as the reference's uncached inference does."""
    model = model_of(golden, shared)
    with torch.no_grad():
        actions = model.sample_from(inputs(shared), shared["in.x0"])
    expected = "infer.action" if "infer.action" in golden else "infer_naive.action"
    golden.close(actions, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.golden_files("pizero/infer_base")
def test_cached_inference(golden: Golden, shared: Golden) -> None:
    model, batch = model_of(shared, shared), inputs(golden)
    with torch.no_grad():
        prefix = model.prefix(batch)
        sensed = model.sense(batch, prefix, torch.zeros(len(batch["text"])))
        valid = model.valid(batch["text"])  # nobody reads keys of padding
        for kind, kept in (("vlm", prefix), ("proprio", sensed)):
            read = valid if kind == "vlm" else torch.ones(len(valid), 1, dtype=torch.bool)
            for number, layer in enumerate(kept):
                for name, value in (("key", layer.keys), ("value", layer.values)):
                    expected = golden[f"kv.{kind}.layer{number}.{name}"].transpose(1, 2)[read]
                    golden.close(value.transpose(1, 2)[read], expected, rtol=1e-4, atol=1e-4)
        golden.close(model.sample_from(batch, golden["in.x0"]), "infer.action", rtol=1e-4, atol=1e-4)


@pytest.mark.golden_files("pizero/infer_base")
def test_uncached_inference_is_equal(golden: Golden, shared: Golden) -> None:
    model, batch = model_of(shared, shared), inputs(golden)
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def field(point: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        steps.append((point, model.predict(batch, point, time)))
        return steps[-1][1]

    with torch.no_grad():
        actions = integrate(golden["in.x0"], field, model.config.inference_steps).clamp(-1, 1)
        golden.close(actions, "infer_naive.action", rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(actions, model.sample_from(batch, golden["in.x0"]), rtol=1e-5, atol=1e-5)
    for number, (point, velocity) in enumerate(steps):
        golden.close(point, golden["infer.x_steps"][number], rtol=1e-4, atol=1e-4)
        golden.close(velocity, golden["infer.v_steps"][number], rtol=1e-4, atol=1e-4)


@pytest.mark.golden_files("pizero/flow_base")
def test_what_a_wrong_constant_does(golden: Golden) -> None:
    """The reference's own numbers for wrong forms, so that the tests above cannot pass by accident."""
    model, batch = model_of(golden, golden), inputs(golden)
    points, time = at(model, golden)

    def shifted(**changes: float) -> float:
        other = PiZero(dataclasses.replace(model.config, **changes), model.dimensions)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            return float((other.predict(batch, points, time) - golden["out.v_psi"]).abs().max())

    assert shifted(soft_cap=1e6) == pytest.approx(0.068, abs=0.002)
    assert shifted(expert_rope_theta=10000.0) > 0.01
    assert shifted(time_period=10000.0) > 0.01


@pytest.mark.golden_files("pizero/flow_base")
def test_flex_attention_is_equal(golden: Golden) -> None:
    eager = model_of(golden, golden)
    flex = PiZero(dataclasses.replace(eager.config, attention="flex"), eager.dimensions)
    flex.load_state_dict(eager.state_dict())
    batch, (points, time) = inputs(golden), at(eager, golden)
    with torch.no_grad():
        golden.close(flex.predict(batch, points, time), "out.v_psi", rtol=1e-5, atol=2e-5)
        actions = flex.sample_from(batch, golden["in.x0"])
        torch.testing.assert_close(actions, eager.sample_from(batch, golden["in.x0"]), rtol=1e-5, atol=1e-5)


@pytest.mark.golden_files("pizero/flow_lora")
def test_adapters(golden: Golden, shared: Golden) -> None:
    """Adapters of the last layer's values are frozen in the reference, and so part of its weight here."""
    from vla_ft.training.preparation import prepare_model

    reference = reference_weights(golden)
    model = build(golden.facts["config"])
    adapters = {k: v for k, v in reference.items() if ".lora_" in k}
    plain = {k: v for k, v in reference.items() if k not in adapters}
    load_state(model, (reference_weights(shared) | plain), "open-pi-zero", golden.name)
    config = run_config(golden)
    prepare_model(model, config)
    parameters = dict(model.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    with torch.no_grad():
        for key, value in adapters.items():
            layer, _, half = key.rpartition(".lora_")
            name = our_name(f"{layer}.weight", model).removesuffix(".weight")
            target = parameters.get(f"{name}.lora_{half}.default.weight")
            if target is not None:
                target.copy_(value)
            elif half == "A":  # frozen in the reference, with what follows the last layer's keys
                parameters[f"{name}.weight"] += adapters[f"{layer}.lora_B"] @ value
    assert sum(parameters[name].numel() for name in trained if ".lora_" in name) == golden.facts["n_lora_trainable"]
    expected = {trained_name(key, model) for key in golden.facts["trainable"]}
    assert trained == expected
    loss = model.loss(inputs(shared), shared["in.x0"], shared["in.t"]).loss
    assert loss.item() == pytest.approx(golden.facts["loss"], rel=1e-5)
    loss.backward()
    for key, norm in golden.facts["grad_norms"].items():
        if norm is not None and ".lora_" in key:
            gradient = parameters[trained_name(key, model)].grad
            assert gradient is not None and float(gradient.norm()) == pytest.approx(norm, rel=1e-4, abs=2e-5), key
    # Nothing drifts in evaluation: the reference merges and takes out again, here nothing is merged.
    before = {name: p.detach().clone() for name, p in parameters.items()}
    model.eval()
    with torch.no_grad():
        again = model.loss(inputs(shared), shared["in.x0"], shared["in.t"]).loss
    assert float(again) == pytest.approx(float(golden["out.loss_eval_merged"]), rel=1e-5)
    model.train()
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())


def run_config(golden: Golden) -> RunConfig:
    from vla_ft.config import run_config_from_dict

    values = {"recipe": "golden", "policy": "pizero", "data": {"path": "mock"}, "steps": 1, "output": "nowhere"}
    config = run_config_from_dict({**values, "model": {"tokenizer": "stand-in"}})
    return dataclasses.replace(config, lora={"vlm": LoraConfig(rank=golden.facts["config"]["lora_r"])})


def trained_name(key: str, model: PiZero) -> str:
    """Where a published adapter or weight is in a model with adapters."""
    layer, mark, half = key.rpartition(".lora_")
    if mark:
        return our_name(f"{layer}.weight", model).removesuffix(".weight") + f".lora_{half}.default.weight"
    return our_name(key, model)
