"""A short real run of every policy on mock data: it trains, saves, continues, and must have learned."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vla_ft.checkpoints import CONFIGURATION
from vla_ft.config import load_run_config, recipe_names
from vla_ft.errors import UserError
from vla_ft.training.tracking import read_metrics
from vla_ft.training.trainer import train

MOVE = "Move it, or name another place for runs with VLA_FT_RUNS=DIR."
SUFFIX = "-mock"
"""Recipes of this ending take part."""


def smoke(root: Path, overrides: Sequence[str], console: Console) -> bool:
    """Run every mock recipe into a folder of its own under ``root``; True when every loss fell. Raises UserError."""
    results = [_one(name, root / name, overrides, console) for name in recipe_names() if name.endswith(SUFFIX)]
    for _, line in results:
        console.print(line, soft_wrap=True, highlight=False)
    return all(learned for learned, _ in results)


def _one(recipe: str, folder: Path, overrides: Sequence[str], console: Console) -> tuple[bool, str]:
    _clear(folder)
    started = time.perf_counter()
    words = [f"recipe={recipe}", *overrides, f"output={folder}"]
    config = load_run_config(words)
    half = max(1, config.steps // 2)
    train(load_run_config([*words, f"steps={half}"]), console)
    train(config, console)
    losses = [line["train/loss"] for line in read_metrics(folder) if "train/loss" in line]
    share = max(1, len(losses) // 4)
    first, last = sum(losses[:share]) / share, sum(losses[-share:]) / share
    learned = last < first or len(losses) < 4
    verdict = "ok" if learned else "FAILED, the loss did not fall"
    return learned, (
        f"{recipe}: {verdict}: loss {first:.3f} -> {last:.3f} in {config.steps} steps, "
        f"continued from its checkpoint at {half}, {time.perf_counter() - started:.0f} s, {folder}"
    )


def _clear(folder: Path) -> None:
    """Remove the previous smoke run; a folder that is something else is left alone. Raises UserError.

    A local run of root's and a container's run of somebody else's share the folder, so either may find the other's.
    """
    try:
        if folder.exists():
            if not (folder / CONFIGURATION).is_file() and any(folder.iterdir()):
                raise UserError(f"{folder} is not a run of `smoke` and would be overwritten. {MOVE}")
            _require_writable(folder)
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_writable(folder.parent)
    except OSError as error:
        raise UserError(f"{folder} cannot be made afresh: {error.strerror or error}. {MOVE}") from error


def _require_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        owner = folder.stat().st_uid
        raise UserError(
            f"{folder} belongs to user {owner}, and this run is user {os.getuid()}, who may not write there. Remove it "
            f"as user {owner} (a container's run and a local one share it), or name another place with VLA_FT_RUNS=DIR."
        )
