"""The loss picture of a run."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

LOSS_PICTURE = "loss.png"


def draw_loss(folder: Path) -> Path | None:
    """Draw training and held-out loss of the run in ``folder`` from its metrics.jsonl; None without any loss."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curves = {
        "training": [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line],
        "held out": [(line["step"], line["validation/loss"]) for line in lines if "validation/loss" in line],
    }
    if not any(curves.values()):
        return None
    # Not by pyplot, whose state and import (half a second of every run's start) nobody here needs.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(curves.items(), ("", "o"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker=marker, linewidth=1.2)
    axes.set(xlabel="optimizer steps", ylabel="loss", title=folder.name)
    if all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.grid(True, alpha=0.3)
    axes.legend()
    path = folder / LOSS_PICTURE
    figure.savefig(path, dpi=120)
    return path
