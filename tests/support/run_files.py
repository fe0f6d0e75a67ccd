"""What a run of ``engine_runs`` left, for comparisons: losses, files to the bit, a copy cut short at a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import metrics


def checkpoint(output: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return output / "checkpoints" / f"step_{step:08d}"


def files(output: Path, step: int = 5) -> dict[str, bytes]:
    """Every tensor of a checkpoint."""
    names = ("model", "ema", "optimizer")
    return {name: (checkpoint(output, step) / f"{name}.safetensors").read_bytes() for name in names}


def close(output: Path, reference: Path, tolerance: float) -> None:
    """Losses of every step, and of validation, with the averaged weights."""
    losses = [[line["train/loss"] for line in metrics(run)] for run in (output, reference)]
    np.testing.assert_allclose(*losses, rtol=tolerance)
    for key in ("validation/loss", "validation/action_mae"):
        assert metrics(output)[-1][key] == pytest.approx(metrics(reference)[-1][key], rel=tolerance)


def cut_short(source: Path, target: Path) -> None:
    """A copy of a run as it was after step 3."""
    shutil.copytree(source, target)
    shutil.rmtree(checkpoint(target, 5))
    (target / "checkpoints" / "latest").write_text("step_00000003")
