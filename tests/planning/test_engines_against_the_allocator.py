"""Forecasts of sharded and copied runs against each process's allocator: two processes, real steps."""

from __future__ import annotations

import pytest
from measured_engines import CASES, SMALL, WORLD, ZERO_CASES, measure_cases

from vla_ft.config import load_run_config
from vla_ft.planning.forecast import compute_of
from vla_ft.planning.fully_sharded import units_of
from vla_ft.planning.imagined import describe
from vla_ft.planning.overlay import moments
from vla_ft.planning.rehearsal import rehearse
from vla_ft.training.compatibility import Setup
from vla_ft.training.engines.zero_settings import REDUCE_BUCKET, bucket

TOLERANCE = 0.03


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """By case, the fuller process's peak. One launch measures all of them."""
    return measure_cases(tmp_path_factory.mktemp("peaks"))


@pytest.mark.parametrize("case", CASES)
def test_within_three_per_cent_but_for_gloos_copy(peaks, case):
    config = load_run_config([*SMALL, *case.split(",")])
    setup = Setup.of(config, WORLD, WORLD)
    trace = rehearse(config, describe(config), compute=compute_of(setup), card=False)
    foreseen = moments(trace, setup, ema=config.ema is not None).peak()
    # gloo reduces a copy, and its threads let go of that when they get to it: the same case gives peaks that differ by
    # one such buffer from run to run. Cards have no such copy. test_shards_against_the_allocator.py is without gloo.
    # Two where an earlier micro-batch's is still there.
    copy = 2 * max(unit.reduced for unit in units_of(trace, setup).values()) if setup.engine == "fsdp2" else 0.0
    low, high = foreseen.total * (1 - TOLERANCE) - copy, (foreseen.total + copy) * (1 + TOLERANCE)
    assert low <= peaks[case] <= high, str(foreseen)


@pytest.fixture(scope="module")
def zero_peaks(tmp_path_factory):
    pytest.importorskip("deepspeed")
    return measure_cases(tmp_path_factory.mktemp("zero"), ZERO_CASES)


@pytest.mark.parametrize("case", ZERO_CASES)
def test_zero_is_within_three_per_cent_but_for_gloos_copies(zero_peaks, case):
    config = load_run_config([*SMALL, *case.split(",")])
    setup = Setup.of(config, WORLD, WORLD)
    trace = rehearse(config, describe(config), compute=compute_of(setup), card=False)
    foreseen = moments(trace, setup, ema=config.ema is not None).peak()
    # What gloo's threads let go of is not in the profiler's account; of a bucket they hold float32 copies.
    copies = 2 * 4 * bucket(REDUCE_BUCKET, trace.parameters[0], max(weight.count for weight in trace.weights))
    assert foreseen.total * (1 - TOLERANCE) <= zero_peaks[case] <= (foreseen.total + copies) * (1 + TOLERANCE)
