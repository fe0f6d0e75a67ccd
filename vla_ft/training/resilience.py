"""What ends a run early: signals that ask it to stop, and numbers that are not finite."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75
"""Exit code of a run that saved and left because it was asked to (sysexits' TEMPFAIL: start it again to continue)."""


REPEAT_SECONDS = 2.0
"""Signals within this time are one wish: a terminal and a launcher both deliver it."""


class Interruption:
    """While active, SIGTERM and SIGINT set a flag that the training loop reads between steps.

    A second Ctrl-C, given later, stops at once; further SIGTERMs change nothing (whoever insists sends SIGKILL).
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested: str | None = None
        self._when = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for number in self._SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested, self._when = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._when > REPEAT_SECONDS:
            raise KeyboardInterrupt
