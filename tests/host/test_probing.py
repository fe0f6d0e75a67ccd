"""Short questions to commands: answers, failures, and commands that hang with children of their own."""

from __future__ import annotations

import sys
import time

from vla_ft.host.probing import answer


def test_what_is_printed_or_nothing():
    assert answer([sys.executable, "-c", "print('v1.2')"]) == "v1.2\n"
    assert answer([sys.executable, "-c", "print('v1.2'); raise SystemExit(3)"]) is None
    assert answer(["no-such-command-anywhere"]) is None


def test_a_command_that_hangs_ends_with_its_children(tmp_path):
    """As docker does with its plugins: the child holds the pipe, so ending the parent alone would wait for ever."""
    note = tmp_path / "child"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    assert answer([sys.executable, "-c", parent], seconds=5) is None
    assert time.monotonic() - started < 60
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _alive(int(note.read_text())):
        time.sleep(0.05)
    assert not _alive(int(note.read_text()))


def _alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
