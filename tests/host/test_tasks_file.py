"""tasks.py from outside: what a user types and gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vla_ft.environment.facts import from_json
from vla_ft.environment.table import REPOSITORY


def invoke(*words, **environ):
    return subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
        env={**os.environ, "DOCKER_HOST": "unix:///nonexistent.sock", **environ},
    )  # fmt: skip


@pytest.mark.newcomer
def test_every_task_has_a_line_of_help():
    listed = invoke("--list")
    assert listed.returncode == 0, listed.stderr
    for name in ("doctor", "lock", "matrix", "record", "smoke", "test", "train"):
        assert any(line.split()[0] == name and len(line.split()) > 3 for line in listed.stdout.splitlines() if line), (
            name
        )


def test_matrix_prints_one_line_of_json():
    done = invoke("matrix", "--json")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert set(json.loads(done.stdout)) == {"build", "gpu"}


@pytest.mark.newcomer
def test_doctor_as_json_agrees_with_its_exit_code_and_records_facts(tmp_path):
    recorded = tmp_path / "facts.json"
    done = invoke("doctor", "--json", "--record", str(recorded))
    data = json.loads(done.stdout)
    assert done.returncode == (0 if data["healthy"] else 1)
    engine = next(one for one in data["checks"] if one["check"] == "engine")
    assert engine["findings"][0]["level"] == "warn"
    assert from_json(recorded.read_text()).engine.state == "unreachable"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["smoke", "--gpu", "rtx509"], "Unknown card 'rtx509'. Did you mean 'rtx5090'?"),
        (["matrix", "--gpus", "gh200"], "Card 'gh200' cannot be used"),
        (["lock", "--env", "cu129"], "Unknown environment 'cu129'"),
        (["test", "--args", "'x"], "Cannot read the arguments"),
        (["doctor", "--record", "/nonexistent/facts.json"], "Cannot write /nonexistent/facts.json"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, sentence):
    done = invoke(*words)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr
