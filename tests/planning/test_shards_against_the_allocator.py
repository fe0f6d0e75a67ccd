"""Forecasts of FSDP2 and HSDP against the allocator where no transport adds copies of its own: all within 3 %."""

from __future__ import annotations

import dataclasses

import pytest
from silent_group import silent_engine

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
    "fp32": (2, "engine=fsdp2"),
    "bf16 weights": (2, "engine=fsdp2,precision=bf16_kahan,batch.per_device=1"),
    "two micro-batches, average": (2, "engine=fsdp2,ema.decay=0.9,batch.accumulation=2"),
    "two micro-batches, bf16": (2, "engine=fsdp2,precision=bf16,batch.accumulation=2,batch.per_device=1"),
    "copies of shards": (4, "engine=hsdp,shard_group=2"),
}
NIGHTLY = {
    "bf16 autocast": (2, "engine=fsdp2,precision=bf16"),
    "frozen trunk": (2, "engine=fsdp2,freeze=[backbone]"),
    "recomputed blocks": (2, "engine=fsdp2,activation_checkpointing=true,batch.per_device=16"),
    "four": (4, "engine=fsdp2,batch.per_device=1"),
    "three micro-batches": (2, "engine=fsdp2,batch.accumulation=3"),
    "copies of shards, bf16 weights": (4, "engine=hsdp,shard_group=2,precision=bf16_stochastic,batch.per_device=1"),
    "copies of shards, two micro-batches": (4, "engine=hsdp,shard_group=2,precision=bf16,batch.accumulation=2"),
}


def both(world, words):
    config = load_run_config([*SMALL, *words.split(",")])
    setup, description = Setup.of(config, world, world), describe(config)
    trace = rehearse(config, description, compute=compute_of(setup), card=False)
    # ``card`` in the overlay alone: nothing is copied for a transport.
    foreseen = moments(dataclasses.replace(trace, card=True), setup, ema=config.ema is not None).peak()
    with silent_engine(config, world) as engine:
        return foreseen, measure_step(config, description, engine).peak


@pytest.mark.parametrize(
    ("world", "words"),
    [
        *(pytest.param(*case, id=name) for name, case in CASES.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.nightly) for name, case in NIGHTLY.items()),
    ],
)
def test_within_three_per_cent(world, words):
    foreseen, measured = both(world, words)
    assert foreseen.total == pytest.approx(measured, rel=TOLERANCE), str(foreseen)
