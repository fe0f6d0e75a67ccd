"""Asking a command a short question. A command that hangs is no answer, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

SECONDS = 20.0


def answer(words: Sequence[str], seconds: float = SECONDS) -> str | None:
    """What a command prints, or None when it is not there, fails, or takes longer than ``seconds``.

    Docker's plugins run as children of ``docker``: ending that alone would leave them running, with the pipe that we
    wait for in their hands. So the command gets a process group, and all of it is ended.
    """
    try:
        process = subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError:
        return None
    with process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return None
    return printed if process.returncode == 0 else None
