"""Engines, precisions and optimizers in whole runs: the same losses, and checkpoints that any of them continues."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from engine_runs import run_cases, single
from safetensors.torch import load_file
from tiny_runs import metrics

from vla_ft.deployment.export import ExportConfig, export

# Of rank one: the second process holds nothing of the tensors of one row.
LORA = ("freeze=[backbone]", "lora.action.rank=1", "lora.action.alpha=2", "frozen_dtype=bf16", "precision=bf16")
EIGHT = ("optimizer.name=adamw8bit", "precision=bf16_kahan")
# One launch of two processes; the tests below read what it left.
CASES = {
    "ddp": ("engine=ddp",),
    "fsdp2": ("engine=fsdp2", "activation_checkpointing=true"),
    "offload": ("engine=fsdp2", "offload=all", *LORA),
    "eight": ("engine=fsdp2", *EIGHT),
    "stochastic": ("engine=ddp", "precision=bf16_stochastic"),
}


def checkpoint(output, step):
    return output / "checkpoints" / f"step_{step:08d}"


def losses(output):
    return np.array([line["train/loss"] for line in metrics(output)])


def files(output, step=5):
    names = ("model", "ema", "optimizer")
    return {name: (checkpoint(output, step) / f"{name}.safetensors").read_bytes() for name in names}


def close(output, reference, tolerance):
    np.testing.assert_allclose(losses(output), losses(reference), rtol=tolerance)
    for key in ("validation/loss", "validation/action_mae"):
        assert metrics(output)[-1][key] == pytest.approx(metrics(reference)[-1][key], rel=tolerance)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two processes: every case, then each that was cut short at step 3 continued."""
    output = tmp_path_factory.mktemp("engines")
    run_cases(output, CASES, processes=2)
    again = {
        "again": ("engine=fsdp2", "activation_checkpointing=true"),
        "again_eight": ("engine=fsdp2", *EIGHT),
        "fsdp2_to_ddp": ("engine=ddp",),
    }
    for name, source in (("again", "fsdp2"), ("again_eight", "eight"), ("fsdp2_to_ddp", "fsdp2")):
        cut_short(output / source, output / name)
    run_cases(output, again, processes=2)
    return output


def cut_short(source, target):
    """A copy of a run as it was after step 3."""
    shutil.copytree(source, target)
    shutil.rmtree(checkpoint(target, 5))
    (target / "checkpoints" / "latest").write_text("step_00000003")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process, float32, everything trained."""
    output = tmp_path_factory.mktemp("single")
    single(output)
    return output


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_train_like_one(runs, reference, name):
    close(runs / name, reference, 2e-6)


def test_single_process_sharding_equals_none_to_the_bit(reference, tmp_path):
    single(tmp_path, "engine=fsdp2", "offload=all", "activation_checkpointing=true")
    assert metrics(tmp_path) == metrics(reference)
    assert files(tmp_path) == files(reference)


def test_two_shards_resume_to_the_bit(runs):
    assert files(runs / "again") == files(runs / "fsdp2")
    assert metrics(runs / "again") == metrics(runs / "fsdp2")


def test_eight_bit_shards_resume_to_the_bit(runs):
    assert files(runs / "again_eight") == files(runs / "eight")


def test_another_engine_continues_a_run(runs, reference, tmp_path):
    close(runs / "fsdp2_to_ddp", reference, 2e-6)
    cut_short(runs / "fsdp2", tmp_path / "single")
    single(tmp_path / "single")  # two processes of fsdp2 -> one without
    close(tmp_path / "single", reference, 2e-6)


def test_one_process_to_two(runs, reference, tmp_path):
    cut_short(reference, tmp_path / "two")
    run_cases(tmp_path, {"two": ("engine=fsdp2",)}, processes=2)
    close(tmp_path / "two", reference, 2e-6)
    record = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert (record["engine"], record["world_size"]) == ("fsdp2", 2)


def test_eight_bit_state_on_another_cut_is_said_to_be_requantised(runs, tmp_path, capsys):
    cut_short(runs / "eight", tmp_path / "run")
    single(tmp_path / "run", *EIGHT)
    assert "re-quantised" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    close(tmp_path / "run", runs / "eight", 1e-3)


def test_low_precision_stays_close_to_float32(runs, tmp_path):
    single(tmp_path / "full")
    for name, tolerance in (("eight", 2e-2), ("stochastic", 1e-2)):
        close(runs / name, tmp_path / "full", tolerance)
        weights = load_file(checkpoint(runs / name, 5) / "model.safetensors")
        assert {value.dtype for value in weights.values() if value.numel()} == {torch.bfloat16, torch.float32}
        assert weights["action_head.weight"].dtype == torch.bfloat16
        assert weights["vision.trunk.layer1.0.bn1.running_mean"].dtype == torch.float32, "buffers are never rounded"


def test_adapters_train_their_part_and_leave_its_weights(runs, tmp_path):
    single(tmp_path / "single", *LORA)
    close(runs / "offload", tmp_path / "single", 2e-3)
    first, last = (load_file(checkpoint(runs / "offload", step) / "model.safetensors") for step in (3, 5))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    # The latent is zero here, so that the adapter of what it is projected by sees nothing.
    assert moved == {name for name in first if ".lora_" in name and not name.startswith("project_latent.")}
    assert all(last[name].dtype == (torch.float32 if ".lora_" in name else torch.bfloat16)
               for name in last if name.startswith("decoder."))  # fmt: skip


@pytest.mark.parametrize("which", ["average", "last"])
def test_export_of_shards_gives_the_weights_of_the_checkpoint(runs, tmp_path, which):
    export(ExportConfig(checkpoint=str(runs / "fsdp2"), output=str(tmp_path / "a.safetensors"), weights=which))
    exported = load_file(tmp_path / "a.safetensors")
    expected = load_file(checkpoint(runs / "fsdp2", 5) / "model.safetensors")
    if which == "average":
        expected |= load_file(checkpoint(runs / "fsdp2", 5) / "ema.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
