"""One process per device on this machine. Like torchrun, but exit codes and signals pass through unchanged.

Several machines are started with torchrun itself; the trainer reads the same environment variables.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vla_ft.training.resilience import EXIT_INTERRUPTED

_LAUNCHER = "VLA_FT_LAUNCHER"
_MISTAKES = "VLA_FT_MISTAKES"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
LEAVE_SECONDS = 5.0
"""How long the others may take to leave by themselves after one has failed, before they are asked to."""
GRACE_SECONDS = 60.0
"""How long the other processes may take to leave after one has failed, before they are killed."""


def processes_for(devices: int | str, device: str) -> int:
    """How many processes a run starts here; 1 when a launcher has started this one already."""
    if "RANK" in os.environ:
        return 1
    if devices != "auto":
        return int(devices)
    promised = os.environ.get("VLA_FT_DEVICE") or "auto"
    if "cpu" in (device, promised):
        return 1
    import torch  # here alone: a process that was launched calls `follow_launcher` before it imports anything large

    return max(1, torch.cuda.device_count())


def launch(command: Sequence[str], processes: int) -> int:
    """Run ``python COMMAND`` (``-m vla_ft train ...``) once per process; returns the first failing exit code, or 0."""
    with tempfile.TemporaryDirectory(prefix="vla-ft-mistakes-") as mistakes:
        code = _run(command, processes, mistakes)
        # Most mistakes are met by every process: said once, whoever met them.
        for message in dict.fromkeys(path.read_text() for path in sorted(Path(mistakes).iterdir())):
            print(f"vla-ft: {message}", file=sys.stderr, flush=True)
    return code


def _run(command: Sequence[str], processes: int, mistakes: str) -> int:
    port = _free_port()
    children = [
        # A session of its own: Ctrl-C reaches it through the launcher alone, once.
        subprocess.Popen(
            [sys.executable, *command],
            env=_environment(rank, processes, port) | {_LAUNCHER: str(os.getpid()), _MISTAKES: mistakes},
            start_new_session=True,
        )
        for rank in range(processes)
    ]

    def forward_signal(number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    previous = {number: signal.signal(number, forward_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait(children)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def follow_launcher() -> None:
    """End this process when the launcher that started it is killed: orphans would train on and hold the run folder."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it died before this line
            os._exit(128 + signal.SIGKILL)


def leave(code: int) -> NoReturn:
    """End this process with ``code``; one of several does so without tearing the interpreter down.

    Exit handlers run and output is flushed as ever. But torch's gloo threads may outlive the process group (FSDP2's
    mesh keeps it), and one that asks for the interpreter while it goes down aborts the process: a run that had finished
    then ended with 134 (seen with torch 2.7.1 and 2.13).
    """
    if "WORLD_SIZE" not in os.environ:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tell_launcher(message: str) -> bool:
    """Leave a mistake for the launcher to print; False when this process has none."""
    folder = os.environ.get(_MISTAKES)
    if folder is None or not os.path.isdir(folder):
        return False
    Path(folder, os.environ["RANK"]).write_text(message)
    return True


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    failed_at: float | None = None
    asked = False
    while None in [child.poll() for child in children]:
        if failed_at is None and _failure(children):
            failed_at = time.monotonic()
        waited = 0.0 if failed_at is None else time.monotonic() - failed_at
        if waited > LEAVE_SECONDS and not asked:
            asked = True
            _stop(children, signal.SIGTERM)
        if waited > LEAVE_SECONDS + GRACE_SECONDS:
            _stop(children, signal.SIGKILL)
        time.sleep(0.1)
    failed = _failure(children)
    if not failed and any(child.returncode == EXIT_INTERRUPTED for child in children):
        return EXIT_INTERRUPTED
    return failed if failed >= 0 else 128 - failed


def _failure(children: list[subprocess.Popen[bytes]]) -> int:
    """The exit code to report, 0 without any: a user's mistake first, then a failure, then those that it had killed."""
    codes = [child.returncode for child in children if child.returncode not in (None, 0, EXIT_INTERRUPTED)]
    own = [code for code in codes if code not in (-signal.SIGTERM, -signal.SIGKILL)]
    return 2 if 2 in codes else next(iter(own or codes), 0)


def _stop(children: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
