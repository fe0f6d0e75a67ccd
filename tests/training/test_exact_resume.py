"""A killed and resumed run equals an uninterrupted one, bit for bit. Real processes, really killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import ROOT, TINY, WHOLE, final_bytes, finish, metrics, start, wait_for_step


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Reference runs by their extra words, each made once."""
    made = {}

    def run(*words):
        if words not in made:
            made[words] = tmp_path_factory.mktemp("reference")
            finish(start(made[words], *words))
        return made[words]

    return run


def assert_same(output, reference):
    seen, expected = final_bytes(output), final_bytes(reference)
    assert seen.keys() == expected.keys()
    different = [name for name in expected if seen[name] != expected[name]]
    assert not different, f"{different} differ"
    assert metrics(output) == metrics(reference)


@pytest.mark.parametrize("words", [(WHOLE,), (WHOLE, "data.workers=1")], ids=["workers0", "workers1"])
def test_two_steps_kill_resume_equals_uninterrupted(tmp_path, uninterrupted, words):
    process = start(tmp_path, *words)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out = finish(start(tmp_path, *words))
    assert "step 2 of" in out or "step 4 of" in out, "the second run did not resume"
    assert_same(tmp_path, uninterrupted(*words))


def test_workers_do_not_change_the_numbers(uninterrupted):
    assert_same(uninterrupted(WHOLE, "data.workers=1"), uninterrupted(WHOLE))


TWO = ("devices=2", "device=cpu", "batch.accumulation=1")


@pytest.mark.parametrize("words", [(), ("engine=fsdp2", "activation_checkpointing=true")], ids=["ddp", "fsdp2"])
def test_two_processes_kill_resume(tmp_path, uninterrupted, words):
    """Only the launcher is killed: its processes must go with it, or they would train on and hold the folder."""
    words = (*TWO, *words)
    process = start(tmp_path, *words)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # returns when the last process has closed its output
    finish(start(tmp_path, *words))
    assert_same(tmp_path, uninterrupted(*words))


def test_torchrun_gives_the_same_run(tmp_path, uninterrupted):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vla_ft"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [*TINY, *TWO, f"output={tmp_path}"]
    done = subprocess.run([*command, "train", *words], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, uninterrupted(*TWO))


def test_sigterm_leaves_a_checkpoint_of_the_current_step(tmp_path, uninterrupted):
    process = start(tmp_path, "checkpoint.every=1000")
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    out = finish(process, 75)
    assert "stopped by SIGTERM at step" in out
    finish(start(tmp_path, "checkpoint.every=1000"))
    seen = final_bytes(tmp_path)
    assert seen == final_bytes(uninterrupted())


@pytest.mark.nightly
def test_twenty_kills_at_random_moments(tmp_path, uninterrupted):
    reference = uninterrupted(WHOLE)
    chance = random.Random(0)
    killed = 0
    for trial in range(20):
        output = tmp_path / str(trial)
        process = start(output, WHOLE)
        wait_for_step(output, 1, process)
        time.sleep(chance.uniform(0, 1.0))
        killed += process.poll() is None
        process.kill()
        process.communicate()
        finish(start(output, WHOLE))
        assert_same(output, reference)
    assert killed >= 10, f"only {killed} of 20 runs were still going when killed"
