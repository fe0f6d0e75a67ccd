"""The sensible pairs of engine, precision, optimizer, recomputing, adapters, compiling and offload; HSDP on four."""

from __future__ import annotations

import json

import numpy as np
import pytest
from engine_runs import run_cases, single
from tiny_runs import metrics

pytestmark = pytest.mark.nightly

ENGINES = {
    "ddp": ("engine=ddp",),
    "fsdp2": ("engine=fsdp2",),
    "offload": ("engine=fsdp2", "offload=all"),
}
# Words, and how close the losses of five steps come to one process with the same words. Equal sums in another order:
# 2e-6; bfloat16 compute rounds those sums to three digits.
METHODS = {
    "plain": ((), 2e-6),
    "bf16": (("precision=bf16",), 5e-3),
    "recompute": (("precision=bf16", "activation_checkpointing=true"), 5e-3),
    "stochastic": (("precision=bf16_stochastic",), 2e-2),
    "kahan": (("precision=bf16_kahan", "activation_checkpointing=true"), 2e-2),
    "eight": (("optimizer.name=adamw8bit",), 1e-4),
    "eight_kahan": (("optimizer.name=adamw8bit", "precision=bf16_kahan"), 2e-2),
    "adapters": (("freeze=[backbone]", "lora.action.rank=4"), 2e-6),
    "adapters_bf16": (
        ("freeze=[backbone]", "lora.action.rank=4", "precision=bf16", "frozen_dtype=bf16",
         "activation_checkpointing=true"), 5e-3,
    ),
    "frozen_bf16": (("freeze=[backbone]", "precision=bf16", "frozen_dtype=bf16"), 5e-3),
    "foreach": (("optimizer.kernel=foreach",), 2e-6),
    "fused": (("optimizer.kernel=fused",), 2e-6),
    "compile": (("compile=true",), 1e-4),
}  # fmt: skip
REFUSED = {("offload", "eight"), ("offload", "eight_kahan")}
FOUR = {
    "hsdp": ("engine=hsdp", "shard_group=2"),
    "hsdp_kahan": ("engine=hsdp", "shard_group=2", "precision=bf16_kahan", "optimizer.name=adamw8bit"),
    "hsdp_stochastic": ("engine=hsdp", "shard_group=2", "precision=bf16_stochastic"),
    "fsdp2": ("engine=fsdp2",),
}


def worst(output, reference):
    """Largest relative difference of the losses, held-out ones included."""
    keys = ("train/loss", "validation/loss")
    seen, expected = ([[line[k] for k in keys if k in line] for line in metrics(o)] for o in (output, reference))
    return max(np.max(np.abs(np.array(a) / np.array(b) - 1)) for a, b in zip(seen, expected, strict=True))


@pytest.fixture(scope="module")
def report(request, tmp_path_factory):
    """Differences by engine and method, written beside the run when all are known."""
    numbers = {}
    yield numbers
    path = tmp_path_factory.getbasetemp() / "engine_matrix.json"
    path.write_text(json.dumps(numbers, indent=1))
    for name, row in numbers.items():
        print(f"{name:<16}" + "".join(f"{engine} {value:.1e}   " for engine, value in row.items()))


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_like_one(tmp_path, report, method):
    words, tolerance = METHODS[method]
    cases = {name: (*engine, *words) for name, engine in ENGINES.items() if (name, method) not in REFUSED}
    run_cases(tmp_path, cases, processes=2)
    single(tmp_path / "one", *words)
    report[method] = {name: worst(tmp_path / name, tmp_path / "one") for name in cases}
    assert all(value <= tolerance for value in report[method].values()), report[method]


def test_four_processes_in_groups_of_two(tmp_path, report):
    run_cases(tmp_path, {name: (*words, "batch.per_device=1") for name, words in FOUR.items()}, processes=4)
    single(tmp_path / "one")
    report["four"] = {name: worst(tmp_path / name, tmp_path / "one") for name in FOUR}
    assert report["four"]["hsdp"] <= 2e-6 and report["four"]["fsdp2"] <= 2e-6
    assert report["four"]["hsdp_kahan"] <= 2e-2 and report["four"]["hsdp_stochastic"] <= 2e-2
