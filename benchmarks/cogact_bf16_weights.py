"""What weights in bfloat16 cost CogACT's small form: training loss beside fp32 weights, same data, noise and seeds.

    OMP_NUM_THREADS=1 python benchmarks/cogact_bf16_weights.py benchmarks/results/cogact_bf16_weights.json

All run `cogact-mock` with sharded weights (fsdp2, one process) and AdamW, with 8-bit moments where weights are
bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vla_ft.config import load_run_config
from vla_ft.training.trainer import train

SHARDS = "engine=fsdp2"
CASES = {
    "fp32": (SHARDS,),
    "bf16 compute, fp32 weights": (SHARDS, "precision=bf16"),
    "bf16_stochastic, 8-bit moments": (SHARDS, "precision=bf16_stochastic", "optimizer.name=adamw8bit"),
    "bf16_kahan, 8-bit moments": (SHARDS, "precision=bf16_kahan", "optimizer.name=adamw8bit"),
}
LAST = 20


def losses(words: tuple[str, ...], steps: int, seed: int) -> dict[str, float]:
    """Means of the last steps' training loss and of the last held-out loss."""
    with tempfile.TemporaryDirectory() as folder:
        common = (
            "recipe=cogact-mock", f"output={folder}", f"steps={steps}", f"seed={seed}", "data.workers=0", "device=cpu",
            "model.image_size=28", "data.image_size=[28,28]", "data.mock.episodes=8", "logging.every=1",
            f"validation.every={steps}", "validation.samples=64", f"checkpoint.every={steps}",
            "model.num_ddim_steps=2", "batch.per_device=8",
        )  # fmt: skip
        train(load_run_config([*common, *words]), Console(quiet=True))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    seen = [line["train/loss"] for line in lines if "train/loss" in line]
    held = [line["validation/loss"] for line in lines if "validation/loss" in line]
    return {"first": seen[0], "training": statistics.mean(seen[-LAST:]), "held_out": held[-1]}


def main() -> None:
    """Run all cases and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    runs: dict[str, Any] = {
        name: [losses(words, options.steps, seed) for seed in range(options.seeds)] for name, words in CASES.items()
    }
    means = {
        name: {key: statistics.mean(row[key] for row in rows) for key in ("training", "held_out")}
        for name, rows in runs.items()
    }
    gaps = {
        name: {key: value[key] / means["fp32"][key] - 1 for key in value}
        for name, value in means.items()
        if name != "fp32"
    }
    found = {"steps": options.steps, "mean_of_last": LAST, "means": means, "gap_to_fp32": gaps, "runs": runs,
             "torch": torch.__version__, "load": os.getloadavg()}  # fmt: skip
    options.result.write_text(json.dumps(found, indent=1))
    for name, gap in gaps.items():
        print(f"{name}: training {gap['training']:+.2%}, held out {gap['held_out']:+.2%}")


if __name__ == "__main__":
    main()
