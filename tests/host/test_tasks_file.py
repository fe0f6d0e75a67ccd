"""tasks.py from outside: what a user types and gets."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from vla_ft.environment.facts import from_json
from vla_ft.environment.table import REPOSITORY, load_table
from vla_ft.host.report import print_cards


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
    names = (
        "base",
        "build",
        "data",
        "doctor",
        "fetch",
        "lock",
        "logs",
        "matrix",
        "plan",
        "recipe",
        "record",
        "shell",
        "smoke",
        "stop",
        "test",
        "train",
        "use",
    )
    for name in names:
        assert any(line.split()[0] == name and len(line.split()) > 3 for line in listed.stdout.splitlines() if line), (
            name
        )


@pytest.mark.parametrize("columns", ["80", ""])
def test_every_card_stands_whole_in_the_list(columns):
    """Into a pipe, as here, and as narrow as a terminal: the first word of a line is what one types."""
    if columns:
        sheet = io.StringIO()
        print_cards(load_table(), Console(file=sheet, width=int(columns)))
        listed = sheet.getvalue()
    else:
        done = invoke("build", "--list")
        assert done.returncode == 0, done.stderr
        listed = done.stdout
    rows = {line.split()[0]: line.split() for line in listed.splitlines() if line.split()}
    for card in load_table().cards:
        environment = load_table().environment(card.environment)
        row = rows[card.name]
        assert {card.sm, card.environment, environment.cuda, environment.torch} <= set(row), row
        assert environment.driver_needed(card.generation) in row


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
