"""Forecasts of FSDP2, HSDP and ZeRO against the allocator where no transport adds copies of its own: all within 3 %."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
from silent_group import CASES, NIGHTLY, ZERO, ZERO_ABOVE, ZERO_NIGHTLY, foreseen_and_measured

from vla_ft.config import load_run_config
from vla_ft.planning.allocation import Phase
from vla_ft.planning.fully_sharded import units_of
from vla_ft.planning.host import host_memory
from vla_ft.planning.imagined import describe
from vla_ft.planning.overlay import moments
from vla_ft.planning.rehearsal import rehearse
from vla_ft.planning.states import states_of
from vla_ft.training.compatibility import Setup

TOLERANCE = 0.03


@pytest.mark.parametrize(
    ("world", "words"),
    [
        *(pytest.param(*case, id=name) for name, case in CASES.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.nightly) for name, case in NIGHTLY.items()),
    ],
)
def test_within_three_per_cent(world, words):
    foreseen, measured = foreseen_and_measured(world, words)
    assert foreseen.total == pytest.approx(measured, rel=TOLERANCE), str(foreseen)


no_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no deepspeed")


@no_deepspeed
@pytest.mark.parametrize(
    ("world", "words"),
    [
        *(pytest.param(*case, id=name) for name, case in ZERO.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.nightly) for name, case in ZERO_NIGHTLY.items()),
    ],
)
def test_zero_is_within_three_per_cent(world, words):
    foreseen, measured = foreseen_and_measured(world, words)
    assert foreseen.total == pytest.approx(measured, rel=TOLERANCE), str(foreseen)


@no_deepspeed
@pytest.mark.nightly
@pytest.mark.parametrize(("world", "words", "above"), ZERO_ABOVE.values(), ids=ZERO_ABOVE)
def test_zero_is_never_foreseen_too_low(world, words, above):
    foreseen, measured = foreseen_and_measured(world, words)
    assert measured <= foreseen.total <= measured * (1 + above), str(foreseen)


def test_offloading_takes_the_states_off_the_card_and_brings_one_unit_back():
    config = load_run_config(["recipe=act-mock", "engine=fsdp2"])
    trace = rehearse(config, describe(config), compute="fp32", card=True)
    setup = Setup.of(config, 2, 2)
    here, there = (moments(trace, dataclasses.replace(setup, offload=kind), ema=False) for kind in ("none", "all"))
    held = states_of(trace.weights, setup)
    unit = max(one.shard + one.gathered / 2 for one in units_of(trace, setup).values())
    peak = there.peak()
    assert peak.weights == peak.gradients == peak.optimizer == 0
    in_step = here.phase != Phase.STEP
    kept = here.activations + here.temporaries + here.buffers
    assert peak.total == pytest.approx(kept[in_step].max() + unit)
    host = host_memory(trace, dataclasses.replace(setup, offload="all"), ema=False, local=2, workers=0, batch_bytes=0)
    assert host.offloaded == pytest.approx(2 * held.total, rel=0.01)
