"""Forecasts of sharded and copied runs against each process's allocator: two processes, real steps."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import measured_engines
import pytest

from vla_ft.config import load_run_config
from vla_ft.planning.forecast import compute_of
from vla_ft.planning.imagined import describe
from vla_ft.planning.overlay import moments
from vla_ft.planning.rehearsal import rehearse
from vla_ft.training.compatibility import Setup

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.03
WORLD = 2
CASES = (
    "engine=ddp",
    "engine=ddp,precision=bf16,batch.accumulation=2",
    "engine=fsdp2",
    "engine=fsdp2,precision=bf16",
    "engine=fsdp2,precision=bf16_kahan,batch.per_device=1",
    "engine=fsdp2,freeze=[backbone]",
    "engine=fsdp2,ema.decay=0.9,batch.accumulation=2",
    "engine=fsdp2,activation_checkpointing=true,batch.per_device=16",
)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """By case, the fullest process's peak. One launch measures all of them."""
    folder = tmp_path_factory.mktemp("peaks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, measured_engines.__file__, str(folder), *CASES]
    shared = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    results = sorted(folder.glob("rank*.json"))
    assert len(results) == WORLD, outputs  # not the exit codes: gloo's teardown may abort after all is written
    measured = [json.loads(path.read_text()) for path in results]
    return {case: max(one[case] for one in measured) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_within_three_per_cent(peaks, case):
    config = load_run_config([*measured_engines.SMALL, *case.split(",")])
    setup = Setup.of(config, WORLD, WORLD)
    trace = rehearse(config, describe(config), compute=compute_of(setup), card=False)
    foreseen = moments(trace, setup, ema=config.ema is not None).peak()
    assert foreseen.total == pytest.approx(peaks[case], rel=TOLERANCE), str(foreseen)
