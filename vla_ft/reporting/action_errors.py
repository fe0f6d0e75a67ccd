"""The picture of an evaluation: error over the horizon, and by joint and horizon step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

NAMED = 32
"""More dimensions than this are numbered, not named."""


def draw_action_errors(numbers: dict[str, Any], path: Path) -> Path:
    """Draw the numbers of ``vla-ft evaluate`` to ``path``: curves over the horizon beside a map of joint by step."""
    joints = numbers["policy_normalized_per_joint_and_step"]
    grid = np.array(list(joints.values()))
    tall = max(3.8, 0.22 * min(len(joints), NAMED) + 1.4)
    figure = Figure(figsize=(11, tall), layout="constrained")
    curves, map_ = figure.subplots(1, 2)
    steps = np.arange(1, grid.shape[1] + 1)
    for key, label in {"policy_normalized": "policy", "repeat_last_action_normalized": "repeat last action"}.items():
        curves.plot(steps, numbers[key], label=label, marker="" if len(steps) > 1 else "o")
    curves.set(xlabel="horizon step", ylabel="mean absolute error, normalised", ylim=(0, None))
    curves.grid(True, alpha=0.3)
    curves.legend()
    image = map_.imshow(grid, aspect="auto", vmin=0, cmap="viridis", extent=(0.5, len(steps) + 0.5, len(joints), 0))
    if len(joints) <= NAMED:
        map_.set_yticks(np.arange(len(joints)) + 0.5, list(joints), fontsize=8)
    map_.set(xlabel="horizon step", title="policy, by joint")
    figure.colorbar(image, ax=map_, label="mean absolute error, normalised")
    figure.suptitle(f"{Path(numbers['checkpoint']).name}: {numbers['windows']} windows, {numbers['precision']}")
    figure.savefig(path, dpi=120)
    return path
