"""Training on a real card: ACT's steps run there, and a killed deterministic run continues to the bit."""

from __future__ import annotations

import math
import signal

import pytest
from tiny_runs import final_bytes, finish, metrics, start, wait_for_step

pytestmark = pytest.mark.gpu

WORDS = ("device=cuda", "devices=1", "deterministic=true")


def test_two_steps_kill_resume_equals_uninterrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out = finish(start(whole, *WORDS))
    assert "cuda" in out
    assert all(math.isfinite(line["train/loss"]) for line in metrics(whole) if "train/loss" in line)

    process = start(killed, *WORDS)
    wait_for_step(killed, 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out = finish(start(killed, *WORDS))
    assert "step 2 of" in out or "step 4 of" in out, "the second run did not resume"
    seen, expected = final_bytes(killed), final_bytes(whole)
    assert seen.keys() == expected.keys()
    assert [name for name in expected if seen[name] != expected[name]] == []
    assert metrics(killed) == metrics(whole)
