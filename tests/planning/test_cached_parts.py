"""Runs whose frozen parts are cached: what training holds, what making the cache holds, and when it is offered."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vla_ft.cli import main
from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.planning.cards import Target
from vla_ft.planning.forecast import Planner, compute_of
from vla_ft.planning.imagined import collate_one, describe, widen
from vla_ft.planning.measurement import measure, measure_step
from vla_ft.planning.overlay import moments
from vla_ft.planning.rehearsal import built, rehearse
from vla_ft.planning.search import plan
from vla_ft.policies.frozen_parts import compute_rows
from vla_ft.training.compatibility import Setup

TOLERANCE = 0.03
SMALL = (
    "recipe=act-mock", "device=cpu", "data.mock.image_size=[64,96]", "data.mock.cameras=[a,b]", "batch.per_device=16",
    "freeze=[backbone]", "model.hidden_dim=128",
)  # fmt: skip
CACHED = (*SMALL, "frozen_features.parts=[backbone]")


def traced(*words):
    config = load_run_config(words)
    setup = Setup.of(config, 1, 1)
    return config, setup, rehearse(config, describe(config), compute=compute_of(setup), card=False)


@pytest.mark.parametrize("words", [(), ("precision=bf16", "frozen_dtype=bf16"), ("activation_checkpointing=true",)])
def test_a_step_without_the_part_is_within_three_per_cent(words):
    # With fewer samples a convolution's workspace decides, which oneDNN sizes by the number of threads.
    config, setup, trace = traced(*CACHED, "batch.per_device=12", *words)
    foreseen = moments(trace, setup, ema=config.ema is not None).peak()
    assert trace.parameters[1] == 0, "nothing frozen is left"
    assert foreseen.total == pytest.approx(measure_step(config, describe(config)).peak, rel=TOLERANCE)


@pytest.mark.parametrize("words", [(), ("precision=bf16",)])
def test_making_the_cache_is_within_three_per_cent(words):
    config, _, trace = traced(*CACHED, *words)
    description = describe(config)
    model = built(config, description)
    declared = model.frozen_features()["backbone"]
    part = model.get_submodule(declared.module)
    batch = widen(collate_one(config, description), config.batch.per_device)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision != "fp32"):
            compute_rows(model, declared, batch)

    run()
    measured = measure(lambda: [*part.parameters(), *part.buffers(), *batch.values()], run)
    assert trace.caching is not None
    assert trace.caching.peak == pytest.approx(measured.peak, rel=TOLERANCE)


def test_what_was_left_out_is_kept_for_checkpoints():
    config, setup, _ = traced(*CACHED)
    planner = Planner(describe(config), card=False)
    with_part = planner.forecast(dataclasses.replace(config, frozen_features=None), setup)
    without = planner.forecast(config, setup)
    assert without.caching is not None
    assert without.checkpoint_bytes == pytest.approx(with_part.checkpoint_bytes, rel=0.01)
    assert without.peak.weights < with_part.peak.weights / 10
    assert without.caching.row_bytes == 2 * 4 * 512 * 2 * 3  # two cameras, float32 [512, 2, 3]
    assert without.allocated == without.caching.peak > without.peak.total, "the fullest moment is before the first step"


def test_a_trained_part_is_refused_as_in_training():
    config = load_run_config(["recipe=act-mock", "frozen_features.parts=[backbone]"])
    with pytest.raises(UserError, match=r"Freeze it with freeze=\[backbone\]"):
        rehearse(config, describe(config), compute="fp32", card=True)


def test_caching_is_offered_for_a_frozen_part_alone():
    config = load_run_config(["recipe=act-mock", "freeze=[backbone]", "data.mock.image_size=[64,64]"])
    planner = Planner(describe(config))
    target = Target("test", 8.0, 1)
    found = plan(config, planner, target)
    offered = next(option for option in found.options if option.config.frozen_features)
    assert offered.line == "frozen_features.parts=[backbone]"
    assert not offered.changes_maths
    assert offered.forecast.needed < found.asked.forecast.needed
    assert load_run_config(["recipe=act-mock", "freeze=[backbone]", *offered.overrides]).frozen_features is not None
    trained = plan(dataclasses.replace(config, freeze=()), planner, target)
    assert not [option for option in trained.options if option.config.frozen_features]


def test_the_command_says_what_making_the_cache_takes(capsys):
    assert main(["plan", *CACHED, "card=rtx3090"]) == 0
    printed = capsys.readouterr().out
    assert "Features of backbone are cached: making them, once and before the first step, takes" in printed
    assert "0.023 MiB of disk for each frame or sample" in printed
