"""Detached runs: found by label, their output streamed, ended by SIGTERM so that they can save."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from container_support import Compose
from docker.models.containers import Container

from vla_ft.errors import UserError
from vla_ft.host import containers, labels
from vla_ft.host.compose import service_command

EXIT_INTERRUPTED = 75
"""What ``vla-ft`` returns when a signal ended a run after its checkpoint."""

pytestmark = pytest.mark.docker

SCRIPT = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(300)
"""


Start = Callable[[str, list[str]], Container]


@pytest.fixture
def start(compose: Compose) -> Iterator[Start]:
    """Starts a service detached; its container is gone after the test."""
    names = []

    def begin(service: str, arguments: list[str]) -> Container:
        names.append(f"test-{uuid.uuid4().hex[:8]}")
        started = compose(*service_command(service, arguments, detached_name=names[-1])[2:])
        assert started.returncode == 0, started.stderr
        return containers.find_run(names[-1])

    yield begin
    for run in containers.runs(everything=True):
        if run.labels[labels.RUN] in names:
            run.remove(force=True, v=True)


def test_logs_then_stop(start: Start) -> None:
    run = start("shell", ["python", "-c", SCRIPT])
    run_name = run.labels[labels.RUN]
    # A terminal is attached to the service, so lines may end in \\r\\n and come in pieces.
    seen = ""
    for piece in containers.stream_logs(run, follow=True):
        seen += piece
        if "ready" in seen:
            break
    assert containers.stop_run(run, grace=30) == 75
    assert "saved" in "".join(containers.stream_logs(run, follow=False))
    with pytest.raises(UserError, match=f"Did you mean '{run_name}'"):
        containers.find_run(run_name + "x")
    containers.remove_run(run)
    assert run_name not in {one.labels[labels.RUN] for one in containers.runs(everything=True)}


def test_stopped_training_saves_and_continues(start: Start, compose: Compose, tmp_path: Path) -> None:
    words = ["output=runs/long", "logging.every=1", "checkpoint.every=1000", "validation.every=1000"]
    run = start("train", ["steps=5000", *words])
    metrics = tmp_path / "runs" / "long" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline, run.logs().decode()
        time.sleep(0.5)
    assert containers.stop_run(run) == EXIT_INTERRUPTED, run.logs().decode()
    stopped = max(row["step"] for row in map(json.loads, metrics.read_text().splitlines()))
    assert stopped < 1000
    finished = compose("run", "--rm", "-T", "train", f"steps={stopped + 3}", *words)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if "train/loss" in row]
    assert steps == list(range(1, stopped + 4))
