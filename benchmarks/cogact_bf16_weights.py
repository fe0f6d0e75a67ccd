"""What weights in bfloat16 cost CogACT's small form: training loss beside fp32 weights, same data, noise and seeds.

    OMP_NUM_THREADS=1 python benchmarks/cogact_bf16_weights.py benchmarks/results/cogact_bf16_weights.json

All run `cogact-mock` with sharded weights (fsdp2, one process) and AdamW, with 8-bit moments where weights are
bfloat16. Gaps are taken between runs of one seed, which see the same data, noise and diffusion steps.
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
KEYS = ("training", "held_out")


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


def gap(by_seed: list[float]) -> dict[str, Any]:
    """Its mean over seeds, with their span."""
    return {"mean": statistics.mean(by_seed), "least": min(by_seed), "most": max(by_seed), "by_seed": by_seed}


def main() -> None:
    """Run all cases and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    options = parser.parse_args()
    runs: dict[str, Any] = {
        name: [losses(words, options.steps, seed) for seed in range(options.seeds)] for name, words in CASES.items()
    }
    usual = runs["fp32"]
    means = {name: {key: statistics.mean(row[key] for row in rows) for key in KEYS} for name, rows in runs.items()}
    gaps = {
        name: {key: gap([row[key] / plain[key] - 1 for row, plain in zip(rows, usual, strict=True)]) for key in KEYS}
        for name, rows in runs.items()
        if name != "fp32"
    }
    # What another seed alone does: a gap within it is none that these runs could show.
    noise = {key: statistics.stdev(row[key] for row in usual) / means["fp32"][key] for key in KEYS}
    found = {"steps": options.steps, "mean_of_last": LAST, "seeds": options.seeds, "means": means, "gap_to_fp32": gaps,
             "fp32_deviation_between_seeds": noise, "runs": runs, "torch": torch.__version__,
             "load": os.getloadavg()}  # fmt: skip
    options.result.write_text(json.dumps(found, indent=1))
    for name, one in gaps.items():
        told = ", ".join(f"{key} {g['mean']:+.2%} ({g['least']:+.2%} to {g['most']:+.2%})" for key, g in one.items())
        print(f"{name}: {told}")
    print("fp32 between seeds, standard deviation: " + ", ".join(f"{key} {value:.2%}" for key, value in noise.items()))


if __name__ == "__main__":
    main()
