"""``vla-ft train`` and ``smoke``, and what every command that trains does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from vla_ft.config import RunConfig
    from vla_ft.training.observer import Observer


def train_command(arguments: Sequence[str]) -> int:
    """``vla-ft train recipe=NAME key=value ...``."""
    from vla_ft.config import load_run_config

    return train_configured(load_run_config(arguments), ["-m", "vla_ft", "train", *arguments])


def train_configured(
    config: RunConfig, command: Sequence[str], observers: Sequence[Observer] = (), console: Console | None = None
) -> int:
    """What every command that trains does: forecast, processes, training, the curve; returns the exit code.

    ``command`` is what Python has to run once per process where there are several. Raises UserError.
    """
    from vla_ft.training.launch import launch, processes_for
    from vla_ft.training.resilience import EXIT_INTERRUPTED

    processes = processes_for(config.devices, config.device)
    foreseen = _foresee(config, processes)
    if processes > 1:
        return launch(command, processes)

    from vla_ft.planning.command import watched
    from vla_ft.planning.measurement import SecondUpdate
    from vla_ft.reporting.curves import draw_loss
    from vla_ft.training.trainer import train

    watch = SecondUpdate() if watched(config) else None
    report = train(config, console, watch, observers)
    if int(os.environ.get("RANK", "0")) == 0:
        draw_loss(report.folder)
        end = f"stopped by {report.interrupted} at" if report.interrupted else "finished"
        numbers = ", ".join(
            f"{k.split('/')[1]} {v:.4f}" for k, v in report.metrics.items() if k.startswith("validation/")
        )
        memory = _memory(report.folder, foreseen, watch.measured if watch else 0)
        said = [f"held out: {numbers}"] if numbers else []
        said += [f"{report.damaged} damaged episodes left out (data.json)"] if report.damaged else []
        said += [memory] if memory else []
        print("; ".join([f"{end} step {report.step}", *said, f"run folder {report.folder}"]))
    return EXIT_INTERRUPTED if report.interrupted else 0


def _foresee(config: RunConfig, processes: int) -> str:
    """Refuse a run that cannot fit on its cards, once, before any process loads weights.

    Returns the forecast as JSON, empty without one. Processes that are started here find it in their environment: it
    is written when training has accepted the run folder and ended.
    """
    if "VLA_FT_LAUNCHER" in os.environ:
        return os.environ.get("VLA_FT_FORECAST", "")  # whoever started this process has asked
    if int(os.environ.get("RANK", "0")) != 0:
        return ""
    from vla_ft.planning.command import check_before_training
    from vla_ft.planning.output import run_forecast

    answer = check_before_training(config, processes)
    if answer is None:
        os.environ.pop("VLA_FT_FORECAST", None)
        return ""
    forecast, target, warning = answer
    print(f"vla-ft: {warning}" if warning else f"memory {forecast.sentence(target)}", file=sys.stderr, flush=True)
    found = json.dumps(run_forecast(forecast, target))
    if processes > 1:
        os.environ["VLA_FT_FORECAST"] = found
    return found


def _memory(folder: Path, foreseen: str, watched: int) -> str:
    """What this process held at most beside what was foreseen, or nothing where neither was asked for.

    A card's account is torch's own; ``watched`` is that of a run on the CPU, bytes.
    """
    import torch

    from vla_ft.planning.output import beside_measured

    measured = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else watched
    return beside_measured(folder, json.loads(foreseen), measured) if foreseen else ""


def smoke_command(arguments: Sequence[str]) -> int:
    """``vla-ft smoke key=value ...``: 1 where a policy did not learn."""
    from pathlib import Path

    from rich.console import Console

    from vla_ft.reporting.curves import draw_loss
    from vla_ft.training.smoke import smoke

    root = Path(os.environ.get("VLA_FT_RUNS", "runs")) / "smoke"
    learned = smoke(root, arguments, Console(width=None if sys.stdout.isatty() else 110))
    for config in sorted(root.glob("*/config.json")):
        draw_loss(config.parent)
    return 0 if learned else 1
