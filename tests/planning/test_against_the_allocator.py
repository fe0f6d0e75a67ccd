"""Forecasts against what torch's allocator gave out during a real step, one process on the CPU."""

from __future__ import annotations

import pytest

from vla_ft.config import load_run_config
from vla_ft.planning.forecast import compute_of
from vla_ft.planning.imagined import describe
from vla_ft.planning.measurement import measure_step
from vla_ft.planning.overlay import moments
from vla_ft.planning.rehearsal import rehearse
from vla_ft.training.compatibility import Setup

TOLERANCE = 0.03
SMALL = (
    "recipe=act-mock", "device=cpu", "data.mock.image_size=[64,96]", "data.mock.cameras=[a,b]", "batch.per_device=4",
    "model.dropout=0.1",
)  # fmt: skip
CASES = {
    "fp32": (),
    "bf16 autocast": ("precision=bf16",),
    "frozen trunk": ("freeze=[backbone]",),
    "recomputed blocks": ("activation_checkpointing=true", "freeze=[backbone]"),
    "average": ("ema.decay=0.9",),
    "two micro-batches": ("batch.accumulation=2",),
    "step fullest, loop": ("batch.per_device=1", "optimizer.kernel=loop"),
    "step fullest, foreach": ("batch.per_device=1", "optimizer.kernel=foreach"),
    "step fullest, fused": ("batch.per_device=1", "optimizer.kernel=fused"),
    "bf16 weights, stochastic": ("precision=bf16_stochastic",),
    "bf16 weights, Kahan": ("precision=bf16_kahan", "batch.per_device=1"),
    "8-bit moments": ("optimizer.name=adamw8bit", "batch.per_device=1"),
    "adapters": ("lora.action.rank=4", "precision=bf16"),
    "LeRobot's form": ("model.decoder_layers=1", "model.std_floor=0", "model.unbiased_std=false"),
    "width layout, one decoder layer read": ("model.camera_layout=width", "model.decoder_output=first"),
}


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_within_three_per_cent(words):
    config = load_run_config([*SMALL, *words])
    setup, description = Setup.of(config, 1, 1), describe(config)
    trace = rehearse(config, description, compute=compute_of(setup), card=False)
    foreseen = moments(trace, setup, ema=config.ema is not None).peak()
    measured = measure_step(config, description)
    assert foreseen.total == pytest.approx(measured.peak, rel=TOLERANCE), str(foreseen)


def test_kinds_add_up_and_states_are_exact():
    config = load_run_config([*SMALL, "ema.decay=0.9"])
    trace = rehearse(config, describe(config), compute="fp32", card=False)
    foreseen = moments(trace, Setup.of(config, 1, 1), ema=True).peak()
    trained, frozen = trace.parameters
    assert foreseen.weights == 4 * (trained + frozen) + trace.buffer_bytes == trace.weight_bytes
    assert foreseen.optimizer == 8 * trained == trace.optimizer_bytes
    assert foreseen.average == 4 * trained == trace.average_bytes
