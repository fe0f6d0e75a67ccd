"""Errors that torch, CUDA and Python raise, told as cause and mend.

Those that need a card are replayed from their texts as recorded: nothing here ran out of a card's memory.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from narrow_trunk import narrow_trunk
from tiny_runs import TINY

from vla_ft.cli import COMMANDS, main
from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.training.known_errors import explain, explained

# Recorded texts, of torch 2.8 on a card.
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.44 GiB. GPU 0 has a total capacity of 31.36 GiB of which 1.05 GiB is free."
    " Including non-PyTorch memory, this process has 30.29 GiB memory in use. Of the allocated memory 28.11 GiB is "
    "allocated by PyTorch, and 1.62 GiB is reserved by PyTorch but unallocated."
)
NO_KERNEL = (
    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be asynchronously "
    "reported at some other API call, so the stacktrace below might be incorrect."
)
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
BUS_ERROR = (
    "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)


def configured(*words: str):
    return load_run_config([*TINY, "output=x", *words])


@pytest.mark.parametrize(
    ("words", "mends"),
    [
        (("batch.per_device=8",), ["batch.per_device is 8: try batch.per_device=4 batch.accumulation=4",
                                   "activation_checkpointing=true", "asked for 2.44 GiB with 1.05 GiB free",
                                   "vla-ft plan recipe=act-mock card=NAME"]),
        (("batch.per_device=9",), ["try batch.per_device=3 batch.accumulation=6, the same global batch"]),
        (("batch.per_device=1", "activation_checkpointing=true"), ["batch.per_device is 1 already", "offload="]),
    ],
)  # fmt: skip
def test_out_of_memory_names_the_batch_and_the_plan(words, mends):
    said = explain(torch.OutOfMemoryError(OUT_OF_MEMORY), configured(*words))
    assert said is not None and said.startswith("CUDA out of memory")
    assert all(mend in said for mend in mends)
    assert ("activation_checkpointing" in said) == (len(words) == 1)


@pytest.mark.parametrize(
    ("error", "mends"),
    [
        (RuntimeError(NO_KERNEL), ["no kernel image", f"torch {torch.__version__} holds no code", "sm_120",
                                   "2.8.0+cu128", "invoke build --gpu", "invoke doctor"]),
        (RuntimeError(OLD_DRIVER), ["GPU not detected", "driver is older", "invoke doctor"]),
        (RuntimeError(BUS_ERROR), ["shared memory (/dev/shm)", "--ipc=host", "data.workers=0"]),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
         ["CUDA out of memory", "nvidia-smi"]),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                      "tried to allocate 68719476736 bytes."), ["The host is out of memory", "batch.per_device"]),
        (ModuleNotFoundError("No module named 'policy.act'"), ["No module named 'policy'", "cd examples/act_guide"]),
    ],
)  # fmt: skip
def test_causes_and_mends(error, mends):
    said = explain(error)
    assert said is not None
    assert all(mend in said for mend in mends), said


@pytest.mark.parametrize(
    "error", [ValueError("policy"), ModuleNotFoundError("No module named 'policyholder'"), KeyError("x")]
)
def test_other_errors_keep_their_traceback(error):
    assert explain(error) is None
    with pytest.raises(type(error)), explained(configured()):
        raise error


def test_a_mistake_stays_what_it_is():
    with pytest.raises(UserError, match=r"^No module named 'policy' is my text$"), explained(configured()):
        raise UserError("No module named 'policy' is my text")


def test_python_says_it_the_way_we_read_it(tmp_path):
    """The guide's import from another folder than its project root."""
    done = subprocess.run(
        [sys.executable, "-c", "from policy.act import build_act_policy"], cwd=tmp_path, capture_output=True, text=True
    )
    assert explain(ModuleNotFoundError(done.stderr.splitlines()[-1].partition(": ")[2])) is not None


def test_a_run_that_meets_one_ends_with_the_mend(tmp_path, monkeypatch, capsys):
    """An update is made to fail as a full card does: the recorded text, raised in place of the forward pass."""

    def fail(*_):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr("vla_ft.training.trainer.update", fail)
    with narrow_trunk():
        assert main(["train", *TINY, f"output={tmp_path}"]) == 2
    shown = capsys.readouterr().err
    assert "vla-ft: CUDA out of memory (it asked for 2.44 GiB with 1.05 GiB free). batch.per_device is 2" in shown


def test_any_command_explains_and_unknown_errors_pass(monkeypatch, capsys):
    def fail(kind):
        def command(_):
            raise kind

        return command

    monkeypatch.setitem(COMMANDS, "evaluate", fail(RuntimeError(NO_KERNEL)))
    assert main(["evaluate"]) == 2
    assert "vla-ft: CUDA error, no kernel image" in capsys.readouterr().err
    monkeypatch.setitem(COMMANDS, "evaluate", fail(RuntimeError("something new")))
    with pytest.raises(RuntimeError, match="something new"):
        main(["evaluate"])


@pytest.mark.parametrize(
    ("output", "mends"),
    [
        (
            "k.cpp: In function kernel:\nk.cpp:7:9: error: tmp3 was not declared",
            ["k.cpp:7:9: error: tmp3", "a fault of torch"],
        ),
        (
            "g++: fatal error: Killed signal terminated program cc1plus",
            ["want of memory", "TORCHINDUCTOR_COMPILE_THREADS=1"],
        ),
    ],
)
def test_a_compiler_that_refuses_or_is_killed(output, mends):
    from torch._inductor.exc import CppCompileError

    said = explain(CppCompileError(["g++", "k.cpp"], output), configured("compile=true"))
    assert said is not None and "compile=false" in said
    assert all(mend in said for mend in mends), said
