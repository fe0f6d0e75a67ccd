"""DeepSpeed's ZeRO in whole runs on two processes: the losses of one, exact resumes, other engines that go on."""

from __future__ import annotations

import importlib.util
import itertools
import signal

import pytest
import torch
from engine_runs import run_cases, single
from run_files import checkpoint, close, cut_short, files
from safetensors.torch import load_file
from tiny_runs import final_bytes, finish, metrics, start, wait_for_step

from vla_ft.deployment.export import ExportConfig, export

# Not imported here: the engine says for which device.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no deepspeed")

LORA = ("freeze=[backbone]", "lora.action.rank=4", "lora.action.alpha=8")
LOW = ("precision=bf16",)
ONE = ("batch.accumulation=1", "batch.per_device=4")
# One launch; the tests below read what it left.
CASES = {
    "zero1": ("engine=zero1",),
    "zero2": ("engine=zero2", "offload=optimizer", *LOW),
    "zero3": ("engine=zero3", "activation_checkpointing=true"),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process, float32, everything trained."""
    output = tmp_path_factory.mktemp("single")
    single(output)
    return output


@pytest.fixture(scope="module")
def runs(tmp_path_factory, reference):
    """Two processes: every case; each that was cut short at step 3 continued; one process's run continued by two."""
    output = tmp_path_factory.mktemp("zero")
    run_cases(output, CASES, processes=2)
    for name in CASES:
        cut_short(output / name, output / f"again_{name}")
    cut_short(reference, output / "one_to_two")
    again = {f"again_{name}": words for name, words in CASES.items()}
    run_cases(output, again | {"one_to_two": ("engine=zero3",)}, processes=2)
    return output


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_two_processes_train_like_one(runs, reference, name):
    close(runs / name, reference, 2e-6)


def test_bfloat16_with_float32_masters_trains_like_autocast(runs, tmp_path):
    """The masters are float32 from the first step on, never what bfloat16 left of the starting weights."""
    single(tmp_path, *LOW)
    close(runs / "zero2", tmp_path, 2e-3)
    weights = load_file(checkpoint(runs / "zero2", 5) / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert any(not torch.equal(w, w.bfloat16().float()) for name, w in weights.items() if name.endswith("bias"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_resume_to_the_bit(runs, name):
    assert files(runs / f"again_{name}") == files(runs / name)
    assert metrics(runs / f"again_{name}") == metrics(runs / name)


def test_one_process_to_two(runs, reference):
    close(runs / "one_to_two", reference, 2e-6)


def test_two_processes_to_one(runs, reference, tmp_path):
    for source, words in (("zero1", ()), ("zero3", ("engine=zero3", "offload=all"))):
        cut_short(runs / source, tmp_path / source)
        single(tmp_path / source, *words)
        close(tmp_path / source, reference, 2e-6)


def test_export_gives_the_averaged_masters(runs, tmp_path):
    export(ExportConfig(checkpoint=str(runs / "zero3"), output=str(tmp_path / "a.safetensors")))
    exported = load_file(tmp_path / "a.safetensors")
    folder = checkpoint(runs / "zero3", 5)
    expected = load_file(folder / "model.safetensors") | load_file(folder / "ema.safetensors")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_nothing_of_deepspeed_is_left_in_the_run_folder(runs):
    known = {
        "checkpoints",
        "config.json",
        "data.json",
        "environment.json",
        "metrics.jsonl",
        "statistics.json",
        "tensorboard",
    }
    assert {p.name for p in (runs / "zero2").iterdir() if not p.name.startswith(("mock_", "."))} == known
    assert not [p for p in checkpoint(runs / "zero2", 5).iterdir() if p.suffix in (".pt", ".pth", ".pkl", ".bin")]


def test_deepspeed_keeps_quiet(runs):
    log = (runs / "log0").read_text()
    assert "engine" in log
    assert "[INFO]" not in log
    assert "[WARNING]" not in log
    assert "FutureWarning" not in log


# --- nightly ---------------------------------------------------------------------------------------------------------

STAGES = ("zero1", "zero2", "zero3")
OFFLOADS = {"zero1": ("none", "optimizer"), "zero2": ("none", "optimizer"), "zero3": ("none", "optimizer", "all")}


def _matrix():
    """Every stage with every offload it has, precision, recomputation and adapters, named by their words."""
    for stage in STAGES:
        choices = itertools.product(OFFLOADS[stage], ("fp32", "bf16"), ("false", "true"), (False, True))
        for offload, precision, again, adapters in choices:
            name = f"{stage}-{offload}-{precision}-{'again' if again == 'true' else 'kept'}-{'lora' * adapters}"
            words = [f"engine={stage}", f"offload={offload}", f"precision={precision}"]
            words += [f"activation_checkpointing={again}", *(LORA if adapters else ()), *ONE]
            words += ["frozen_dtype=bf16"] if adapters and precision == "bf16" else []
            yield name, tuple(words)


@pytest.mark.nightly
@pytest.mark.parametrize("stage", STAGES)
def test_the_full_matrix(stage, tmp_path):
    cases = {name: words for name, words in _matrix() if name.startswith(stage)}
    run_cases(tmp_path / "two", cases, processes=2)
    references = {}
    for name, words in cases.items():
        plain = tuple(w for w in words if not w.startswith(("engine", "offload", "activation", "batch.per_device")))
        if plain not in references:
            references[plain] = tmp_path / f"reference{len(references)}"
            single(references[plain], *plain, "batch.per_device=8")
        close(tmp_path / "two" / name, references[plain], 2e-3 if "bf16" in name else 2e-6)


@pytest.mark.nightly
def test_every_engine_goes_on_under_every_other(tmp_path):
    engines = ("fsdp2", *STAGES)
    run_cases(tmp_path, {name: (f"engine={name}",) for name in engines}, processes=2)
    single(tmp_path / "single")
    moves = {f"{a}_to_{b}": (f"engine={b}",) for a, b in itertools.permutations(engines, 2)}
    for name in moves:
        cut_short(tmp_path / name.split("_to_")[0], tmp_path / name)
    run_cases(tmp_path, moves, processes=2)
    for name in moves:
        close(tmp_path / name, tmp_path / "single", 2e-6)


def assert_killed_resumes(folder, *words):
    """With dropout, latent noise, average and schedule; all processes die at once."""
    words = ("batch.accumulation=1", "freeze=[]", *words)
    finish(start(folder / "whole", *words))
    process = start(folder / "killed", *words)
    wait_for_step(folder / "killed", 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out = finish(start(folder / "killed", *words))
    assert "step 2 of" in out or "step 4 of" in out, "the second run did not resume"
    assert final_bytes(folder / "killed") == final_bytes(folder / "whole")
    assert metrics(folder / "killed") == metrics(folder / "whole")


@pytest.mark.nightly
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_runs_resume_to_the_bit(stage, precision, tmp_path):
    assert_killed_resumes(tmp_path, "devices=2", "device=cpu", f"engine={stage}", f"precision={precision}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("words", [(stage, offload) for stage in STAGES for offload in OFFLOADS[stage]])
def test_killed_runs_resume_to_the_bit_on_a_card(words, tmp_path):
    stage, offload = words
    assert_killed_resumes(
        tmp_path,
        "devices=1",
        "device=cuda",
        "deterministic=true",
        "precision=bf16",
        f"engine={stage}",
        f"offload={offload}",
    )
