"""CogACT's small form on mock demonstrations: the training loss with the pictures, and with another sample's pictures.

    OMP_NUM_THREADS=1 python benchmarks/cogact_learning.py benchmarks/results/cogact_learning.json

In mock demonstrations a disc's place decides the pose that the joints approach. Both runs are `cogact-mock` with the
same data, seeds, noise and diffusion steps; in the second every training batch's pictures are moved on by one sample.
Batches are shuffled over the 51 training episodes, so all but about one picture in 51 then show another episode's disc.
How far the first run's training loss falls below the second's comes from the pictures.

Held-out numbers are of the first run alone: held-out windows come in order, episode by episode, and a disc stays put
for its episode, so that most of them, moved on by one, would still see their own disc.
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


def run(steps: int, held_out: bool) -> dict[str, Any]:
    """Means of the first and last steps' training loss and every loss; with ``held_out`` what validation said at the
    end: loss, action error normalised (``action_l1``) and in robot units (``action_mae``)."""
    with tempfile.TemporaryDirectory() as folder:
        words = (
            "recipe=cogact-mock", f"output={folder}", f"steps={steps}", f"seed={SEED}", "data.workers=0", "device=cpu",
            *SMALL, "logging.every=1", f"validation.every={steps}", "validation.samples=256",
            f"checkpoint.every={steps}", "optimizer.lr=7e-4",
        )  # fmt: skip
        train(load_run_config(words), Console(quiet=True))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    found: dict[str, Any] = {"first": statistics.mean(losses[:ENDS]), "last": statistics.mean(losses[-ENDS:])}
    if held_out:
        last = next(line for line in reversed(lines) if "validation/loss" in line)
        found["held_out"] = {
            key.removeprefix("validation/"): value for key, value in last.items() if "validation/" in key
        }
    return found | {"losses": losses}


def main() -> None:
    """Run both and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    found: dict[str, Any] = {"steps": options.steps, "mean_of": ENDS, "torch": torch.__version__}
    found["own_pictures"] = run(options.steps, held_out=True)
    with patch.object(CogActProcessor, "collate", another_picture(CogActProcessor.collate)):
        found["other_pictures"] = run(options.steps, held_out=False)
    found["load"] = os.getloadavg()
    options.result.write_text(json.dumps(found))
    for name in ("own_pictures", "other_pictures"):
        one = found[name]
        numbers = one.get("held_out", {}).items()
        held = ", ".join(f"{key} {value:.3f}" for key, value in numbers if isinstance(value, float))
        print(
            f"{name}: training loss {one['first']:.3f} to {one['last']:.3f}" + (f"; held out: {held}" if held else "")
        )


if __name__ == "__main__":
    main()
