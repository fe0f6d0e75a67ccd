"""What ends a run early: signals that ask it to stop, and numbers that are not finite."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_INTERRUPTED = 75
"""Exit code of a run that saved and left because it was asked to (sysexits' TEMPFAIL: start it again to continue)."""


class Interruption:
    """While active, SIGTERM and SIGINT set a flag that the training loop reads between steps.

    A second signal is not swallowed: the previous handlers are back in place after the first.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interruption:
        for number in self._SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
