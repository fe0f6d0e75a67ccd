"""Where a run's numbers go: metrics.jsonl and TensorBoard always, W&B when asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vla_ft.config import LoggingConfig
from vla_ft.training.checkpointing import replace_text
from vla_ft.training.wandb_run import WandbRun

METRICS = "metrics.jsonl"


class Tracker:
    """Writes scalars by step. Opened at ``step`` it first forgets what a killed process wrote beyond it."""

    def __init__(self, folder: Path, config: LoggingConfig, run: dict[str, Any], step: int) -> None:
        self._wandb = None if config.wandb == "off" else WandbRun(folder, config, run)  # first: it may refuse
        path = folder / METRICS
        _forget_after(path, step)
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._artifacts = config.artifacts

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record scalars after ``step`` updates. A line reaches the file at once."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in {"step": step, **values}.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(step, {"step": step, **values})

    def checkpointed(self, step: int, folder: Path, files: Sequence[Path] | None = None) -> None:
        """A whole checkpoint lies in ``folder``: keep it, or the ``files`` that stand for it, as an artifact where that
        is asked for."""
        if self._wandb is not None and self._artifacts:
            self._wandb.checkpoint(step, folder, files)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        """Flush and close every destination."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Every line of a run's metrics.jsonl; a torn last line is left out."""
    path = folder / METRICS
    return _whole_lines(path.read_text()) if path.is_file() else []


def _forget_after(path: Path, step: int) -> None:
    if path.is_file():
        kept = [line for line in _whole_lines(path.read_text()) if line["step"] <= step]
        replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _whole_lines(text: str) -> list[dict[str, float]]:
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # torn by a kill; whatever follows is later still
    return lines
