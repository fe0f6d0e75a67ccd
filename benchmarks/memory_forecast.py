"""Forecast against allocator, and what tracing itself costs. Writes benchmarks/results/memory_forecast.json.

OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python benchmarks/memory_forecast.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from vla_ft.config import load_run_config
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.loading import build_loader
from vla_ft.data.mock import write_mock
from vla_ft.data.order import BatchPlan
from vla_ft.planning.forecast import Planner, compute_of
from vla_ft.planning.imagined import describe, imagined_processor
from vla_ft.planning.measurement import measure_step
from vla_ft.planning.overlay import moments
from vla_ft.planning.rehearsal import rehearse
from vla_ft.training.compatibility import Setup

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "memory_forecast.json"
SMALL = ("recipe=act-small", "data.path=mock", "device=cpu", "data.mock.cameras=[a,b]", "data.mock.image_size=[96,128]")
SINGLE = (
    "", "precision=bf16", "freeze=[backbone]", "activation_checkpointing=true", "ema=null,batch.accumulation=2",
    "batch.per_device=1,optimizer.kernel=loop", "batch.per_device=1,optimizer.kernel=foreach",
    "batch.per_device=1,optimizer.kernel=fused", "precision=bf16_stochastic", "precision=bf16_kahan,batch.per_device=1",
    "freeze=[backbone],frozen_features.parts=[backbone]",
    "optimizer.name=adamw8bit,batch.per_device=1", "lora.action.rank=4,precision=bf16",
)  # fmt: skip


def single(case: str) -> dict[str, Any]:
    """One process on the CPU: bytes foreseen and allocated."""
    config = load_run_config([*SMALL, *filter(None, case.split(","))])
    setup, description = Setup.of(config, 1, 1), describe(config)
    trace = rehearse(config, description, compute=compute_of(setup), card=False)
    foreseen = moments(trace, setup, ema=config.ema is not None).peak()
    return _row(case or "as the recipe", foreseen.total, measure_step(config, description).peak, foreseen.phase)


def two_processes() -> list[dict[str, Any]]:
    """DDP, FSDP2 and ZeRO through gloo, the fuller of two processes."""
    from measured_engines import CASES, WORLD, ZERO_CASES, measure_cases
    from measured_engines import SMALL as SHARED

    with tempfile.TemporaryDirectory() as folder:
        peaks = measure_cases(Path(folder), (*CASES, *ZERO_CASES))
    rows = []
    for case in (*CASES, *ZERO_CASES):
        config = load_run_config([*SHARED, *case.split(",")])
        setup = Setup.of(config, WORLD, WORLD)
        trace = rehearse(config, describe(config), compute=compute_of(setup), card=False)
        foreseen = moments(trace, setup, ema=config.ema is not None).peak()
        rows.append(_row(case, foreseen.total, peaks[case], foreseen.phase))
    return rows


def without_transport() -> list[dict[str, Any]]:
    """Shards whose collectives copy nothing: what torch and the engine allocate themselves."""
    from silent_group import CASES, NIGHTLY, ZERO, ZERO_ABOVE, ZERO_NIGHTLY, foreseen_and_measured

    rows = []
    for world, words, *_ in (c for cases in (CASES, NIGHTLY, ZERO, ZERO_NIGHTLY, ZERO_ABOVE) for c in cases.values()):
        foreseen, measured = foreseen_and_measured(world, words)
        rows.append(_row(f"{world} processes, {words}", foreseen.total, measured, foreseen.phase))
    return rows


def workers() -> dict[str, Any]:
    """Memory of data workers of a full-size ACT run, MiB: resident, and what is theirs alone."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_run_config(["recipe=act", "data.path=mock", "data.mock.episodes=2", f"output={folder}"])
        reader = open_dataset(write_mock(Path(folder), config.data.mock))
        processor = imagined_processor(config, reader.description)
        order = BatchPlan(per_device=config.batch.per_device, world=1, rank=0, accumulation=1)
        loader = build_loader(reader, np.arange(2), processor, order, seed=0, workers=2)
        with contextlib.closing(loader):
            batches = iter(loader)
            for _ in range(8):
                batch = next(batches)
            children = [child.memory_full_info() for child in psutil.Process().children()]
        one = sum(value.numel() * value.element_size() for value in batch.values())
    return {
        "workers": len(children), "batch_mib": round(one / 2**20, 1),
        "resident_mib": [round(child.rss / 2**20) for child in children],
        "own_mib": [round(child.uss / 2**20) for child in children],
    }  # fmt: skip


def plans() -> list[dict[str, Any]]:
    """The whole command, processor seconds and wall clock, where the run fits as asked and where it does not."""
    rows = []
    for words in ("card=rtx3090 cards=4", "card=4GiB cards=4", "card=rtx3090 cards=4 precision=bf16"):
        before, started = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "vla_ft", "plan", "recipe=act", *words.split()]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        rows.append({"words": words, "cpu_seconds": round(used, 1), "wall": round(time.perf_counter() - started, 1)})
        print(rows[-1], flush=True)
    return rows


def tracing(name: str) -> dict[str, Any]:
    """Time and memory of tracing one full-size step, in this process alone."""
    config = load_run_config(["recipe=act", "data.path=mock", "precision=bf16"])
    build = None
    if name == "7B transformer":
        from imagined_models import seven_billion

        build = seven_billion
        config = load_run_config(["recipe=act-mock", "precision=bf16", "batch.per_device=4", "model.chunk_size=512"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    trace = Planner(describe(config), build=build).trace(config, Setup.of(config, 1, 1))
    return {
        "model": name, "weights": sum(trace.parameters), "batch": trace.batch_size,
        "seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(time.process_time(), 1),
        "resident_mib_before": round(before),
        "resident_mib_most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def _row(case: str, foreseen: float, allocated: int, phase: str) -> dict[str, Any]:
    error = round(foreseen / allocated - 1, 5)
    print(f"{case:60} {foreseen / 2**20:9.2f} {allocated / 2**20:9.2f} MiB {error:+.2%} {phase}", flush=True)
    return {"case": case, "foreseen": round(foreseen), "allocated": allocated, "error": error, "fullest_in": phase}


def main() -> None:
    """Run all, or one trace with --tracing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tracing", choices=("ACT", "7B transformer"))
    asked = parser.parse_args().tracing
    if asked:
        print(json.dumps(tracing(asked)))
        return
    traced = [
        json.loads(subprocess.check_output([sys.executable, __file__, "--tracing", name]).splitlines()[-1])
        for name in ("ACT", "7B transformer")
    ]
    result = {
        "command": "OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python benchmarks/memory_forecast.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU, load {os.getloadavg()[0]:.1f} by other jobs",
        "torch": torch.__version__,
        "truth": "states counted, and the highest running sum of the CPU allocator's events over the second real step",
        "one_process": [single(case) for case in SINGLE],
        "two_processes": two_processes(),
        "without_transport": without_transport(),
        "workers": workers(),
        "plan_command": plans(),
        "tracing_full_size": traced,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
