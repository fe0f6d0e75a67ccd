"""Signals as they really come: to one process, or to the whole group by a terminal or a scheduler."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tiny_runs import finish, start, wait_for_step

from vla_ft.training.checkpointing import sole_writer
from vla_ft.training.resilience import REPEAT_SECONDS, Interruption

LONG = ("steps=500", "checkpoint.every=1000", "validation.every=1000", "batch.accumulation=1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "words", [("data.workers=1",), ("devices=2", "device=cpu", "data.workers=1")], ids=["one", "two"]
)
def test_a_signal_to_every_process_still_leaves_a_checkpoint(tmp_path, number, words):
    process = start(tmp_path, *LONG, *words)
    wait_for_step(tmp_path, 2, process)
    os.killpg(process.pid, number)
    signalled = time.monotonic()
    out = finish(process, 75)
    assert time.monotonic() - signalled < 18, "its workers kept it from leaving"
    assert f"stopped by {number.name} at step" in out
    assert "Traceback" not in out
    assert (tmp_path / "checkpoints" / "latest").is_file()


def test_a_killed_run_frees_its_folder_at_once(tmp_path):
    process = start(tmp_path, *LONG, "data.workers=2")
    wait_for_step(tmp_path, 2, process)
    process.kill()
    process.wait()
    with sole_writer(tmp_path):  # its workers may live on for seconds: they must not hold the lock
        pass
    process.communicate()


def test_a_second_ctrl_c_stops_at_once_and_repeats_do_not(monkeypatch):
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested == "SIGINT"
        later = time.monotonic() + 2 * REPEAT_SECONDS
        monkeypatch.setattr(time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
