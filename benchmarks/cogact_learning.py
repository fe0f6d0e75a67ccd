"""CogACT's small form on mock demonstrations: the training loss with the pictures, and with another sample's pictures.

    OMP_NUM_THREADS=1 python benchmarks/cogact_learning.py benchmarks/results/cogact_learning.json

In mock demonstrations a disc's place decides the pose that the joints approach. Both runs are `cogact-mock` with the
same data, seeds, noise and diffusion steps; in the second every batch's pictures are moved on by one sample, in
training and validation: they say nothing of the actions. What the first learns beyond it comes from the pictures.
Single actions of four dimensions: in a noisy chunk of many, the head sees what they have in common without any picture.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console

from vla_ft.config import load_run_config
from vla_ft.data.sample import Sample
from vla_ft.policies.base import Batch
from vla_ft.policies.cogact.processing import IMAGE, CogActProcessor
from vla_ft.training.trainer import train

ENDS = 20
SEED = 42
SMALL = (
    "model.image_size=28", "data.image_size=[28,28]", "data.mock.image_size=[28,28]", "data.mock.episodes=64",
    "data.mock.min_length=40", "data.mock.max_length=40", "data.mock.action_dim=4", "model.future_action_window_size=0",
    "batch.per_device=16",
)  # fmt: skip


def another_picture(collate: Any) -> Any:
    """A processor's ``collate`` whose samples see the picture of the one before."""

    def moved(self: CogActProcessor, samples: Sequence[Sample]) -> Batch:
        batch = collate(self, samples)
        return {**batch, IMAGE: batch[IMAGE].roll(1, 0)}

    return moved


def run(steps: int) -> dict[str, Any]:
    """Means of the first and last steps' training loss, held-out loss and action error at the end, and every loss."""
    with tempfile.TemporaryDirectory() as folder:
        words = (
            "recipe=cogact-mock", f"output={folder}", f"steps={steps}", f"seed={SEED}", "data.workers=0", "device=cpu",
            *SMALL, "logging.every=1", f"validation.every={steps}", "validation.samples=256",
            f"checkpoint.every={steps}", "optimizer.lr=7e-4",
        )  # fmt: skip
        train(load_run_config(words), Console(quiet=True))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    last = next(line for line in reversed(lines) if "validation/loss" in line)
    return {
        "first": statistics.mean(losses[:ENDS]),
        "last": statistics.mean(losses[-ENDS:]),
        "held_out": {key.removeprefix("validation/"): value for key, value in last.items() if "validation/" in key},
        "losses": losses,
    }


def main() -> None:
    """Run both and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    found: dict[str, Any] = {"steps": options.steps, "mean_of": ENDS, "torch": torch.__version__}
    found["own_pictures"] = run(options.steps)
    with patch.object(CogActProcessor, "collate", another_picture(CogActProcessor.collate)):
        found["other_pictures"] = run(options.steps)
    found["load"] = os.getloadavg()
    options.result.write_text(json.dumps(found))
    for name in ("own_pictures", "other_pictures"):
        one = found[name]
        held = ", ".join(f"{key} {value:.3f}" for key, value in one["held_out"].items() if isinstance(value, float))
        print(f"{name}: training loss {one['first']:.3f} to {one['last']:.3f}; held out: {held}")


if __name__ == "__main__":
    main()
