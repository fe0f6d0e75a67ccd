"""Detached runs: found by label, their output streamed, ended by SIGTERM so that they can save."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from container_support import Compose

from vla_ft.errors import UserError
from vla_ft.host import containers
from vla_ft.host.compose import service_command

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


@pytest.fixture
def run_name(compose: Compose) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    command = service_command("shell", ["python", "-c", SCRIPT], detached_name=name)
    started = compose(*command[2:])
    assert started.returncode == 0, started.stderr
    yield name
    for run in containers.runs(everything=True):
        if run.labels["vla_ft.run"] == name:
            run.remove(force=True, v=True)


def test_logs_then_stop(run_name: str) -> None:
    run = containers.find_run(run_name)
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
    assert run_name not in {one.labels["vla_ft.run"] for one in containers.runs(everything=True)}
