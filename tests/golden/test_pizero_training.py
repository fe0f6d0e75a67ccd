"""Six updates of open-pi-zero's training by our engine: losses, norms before clipping, rates, weights, average."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import golden_files
import pytest
import torch
from golden_files import Golden
from pizero_models import ACTION, PROPRIO, base, build, inputs, our_name, reference_weights

from vla_ft.config import EmaConfig, GroupConfig, RunConfig, ScheduleConfig, run_config_from_dict
from vla_ft.policies.pizero.checkpoint import load_state
from vla_ft.policies.pizero.model import PiZero
from vla_ft.training.averages import Ema
from vla_ft.training.engines.base import Engine
from vla_ft.training.optimizers import set_learning_rates
from vla_ft.training.preparation import prepare_model


def run_of(facts: dict[str, Any]) -> RunConfig:
    """The case's optimizers, schedules and average as a run of ours."""
    values = {"recipe": "golden", "policy": "pizero", "data": {"path": "mock"}, "steps": 6, "output": "nowhere"}
    config = run_config_from_dict({**values, "model": {"tokenizer": "stand-in"}})
    parts = {"action": facts["action_opt"], "vlm": facts["vlm_opt"]}
    groups = {part: group_of(options) for part, options in parts.items() if options is not None}
    first = facts["action_opt"]
    optimizer = dataclasses.replace(
        config.optimizer,
        betas=tuple(first["betas"]),
        eps=first["eps"],
        groups=groups,
        clip_grad_norm=facts["max_grad_norm"],
    )
    average = EmaConfig(decay=facts["ema"]["decay"], start_step=facts["ema"]["start_update"])
    freeze = () if facts["train_vlm"] else ("vlm",)
    return dataclasses.replace(config, optimizer=optimizer, ema=average, freeze=freeze, device="cpu")


def group_of(options: dict[str, Any]) -> GroupConfig:
    schedule = options["schedule"]
    return GroupConfig(
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        schedule=ScheduleConfig(
            name="cosine_restarts",
            cycle_steps=schedule["first_cycle_steps"],
            warmup_steps=schedule["warmup_steps"],
            final_fraction=schedule["min_lr"] / options["lr"],
        ),
    )


@pytest.fixture
def weights(golden_root: Path) -> Golden:
    if not (golden_root / "pizero/train_full.safetensors").is_file():
        pytest.skip("pizero/train_full is not under this root")
    return golden_files.load(golden_root, "pizero/train_full")


@pytest.mark.golden_files("pizero/train_full", "pizero/train_action_only")
def test_six_updates(golden: Golden, golden_root: Path, weights: Golden) -> None:
    facts, shared = golden.facts, base(golden_root)
    model = build(facts["config"])
    load_state(model, tied(weights), "open-pi-zero", golden.name)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    config = run_of(facts)
    prepare_model(model, config)
    engine = Engine(config, torch.device("cpu"))
    engine.wrap(model)
    engine.build_optimizer()
    engine.check()
    average = Ema({name: engine.weights[name] for name in engine.trained}, config.ema)
    assert facts["n_action_params"] == sum(p.numel() for _, p in model.parameter_groups()["action"])
    assert facts["n_vlm_params"] == sum(p.numel() for _, p in model.parameter_groups()["vlm"])

    losses, norms, rates = [], [], []
    observed, per_update = inputs(shared), facts["grad_accumulation"]
    for step in range(6):
        rates.append(set_learning_rates(engine.optimizer, config.schedule, config.optimizer, step, config.steps))
        engine.zero_grad()
        for number in range(step * per_update, (step + 1) * per_update):
            batch = observed | {"action": golden[f"batch{number}.actions"]}
            loss = model.loss(batch, golden[f"batch{number}.x0"], golden[f"batch{number}.t"]).loss
            losses.append(loss.item())
            engine.backward(loss / per_update)
        norms.append(float(engine.clip(facts["max_grad_norm"])))
        engine.step()
        average.update(engine.weights, step)

    assert losses == pytest.approx(facts["losses"], rel=1e-4)
    assert norms == pytest.approx(facts["grad_norm_before_clip"], rel=5e-4)
    assert [r["action"] for r in rates] == pytest.approx(facts["action_lr_used"], rel=1e-9)
    assert [r["vlm"] for r in rates if "vlm" in r] == pytest.approx(facts["vlm_lr_used"], rel=1e-9)
    assert_weights(golden, model, start, average, engine)


def tied(weights: Golden) -> dict[str, torch.Tensor]:
    """The state dict with both names of a tied expert, which the reference stores under either."""
    state = reference_weights(weights)
    return state | {key.replace(ACTION, PROPRIO): value for key, value in state.items() if key.startswith(ACTION)}


def assert_weights(golden: Golden, model: PiZero, start: dict[str, torch.Tensor], average: Ema, engine: Engine) -> None:
    final = model.state_dict()
    for key in golden.tensors:
        kind, _, published = key.partition(".")
        if kind not in ("final", "ema"):
            continue
        name = our_name(published, model)
        mine = average.average.get(name, final[name]) if kind == "ema" else final[name]
        golden.close(mine, key, rtol=1e-4, atol=1e-4)
    for published, moved in golden.facts["moved"].items():
        name = our_name(published, model)
        if "layers.2.self_attn.q_proj" in name and name.startswith("vlm."):
            continue  # its gradient is zero: whether weight decay moves it is not the question here
        assert torch.equal(final[name], start[name]) != moved, name
    if not golden.facts["train_vlm"]:
        assert all(p.grad is None for name, p in model.named_parameters() if name.startswith("vlm."))
        assert not any(name.startswith("vlm.") for name in engine.optimizer_state())
