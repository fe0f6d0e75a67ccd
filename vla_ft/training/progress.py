"""What a person sees while a run goes on: one live line on a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections import deque

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class ProgressLine:
    """Step, loss, samples per second, time left and memory, from the main process only."""

    def __init__(self, console: Console, steps: int, done: int, samples_per_step: int, enabled: bool) -> None:
        self._console, self._steps, self._batch, self._enabled = console, steps, samples_per_step, enabled
        self._times: deque[tuple[int, float]] = deque([(done, time.perf_counter())], maxlen=64)
        self._live = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console, disable=not (enabled and console.is_terminal),
        )  # fmt: skip
        self._task = self._live.add_task("", total=steps, completed=done)

    def __enter__(self) -> ProgressLine:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def samples_per_second(self) -> float:
        """Rate over the last 64 steps at most, all processes together."""
        (first, start), (last, end) = self._times[0], self._times[-1]
        return (last - first) * self._batch / max(end - start, 1e-9)

    def update(self, step: int, loss: float, log: bool) -> None:
        """Show the state after ``step`` updates; off a terminal only when ``log`` is due."""
        self._times.append((step, time.perf_counter()))
        if not self._enabled:
            return
        rate = self.samples_per_second
        left = (self._steps - step) * self._batch / max(rate, 1e-9)
        text = f"loss {loss:.4f}  {rate:.1f} samples/s  ETA {_clock(left)}  {memory_gib():.2f} GiB"
        self._live.update(self._task, completed=step, description=text)
        if log and not self._console.is_terminal:
            self._console.print(f"step {step}/{self._steps}  {text}", soft_wrap=True)


def memory_gib() -> float:
    """Peak allocated memory of the card that this process trains on, or else its resident memory."""
    if torch.cuda.is_initialized():  # by the engine alone: a run on the CPU never touches a card
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
