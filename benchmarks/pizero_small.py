"""What freezing π0's vision-language model saves, and what bfloat16 weights cost, on a small form on the CPU.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/pizero_small.py benchmarks/results/pizero_small.json

Memory is what autograd keeps for the backward pass and what gradients and moments take; time is a paired ratio of whole
updates. The loss gap is that of the mean training loss over the last third of equal runs on mock demonstrations, seed
by seed.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vla_ft.config import load_run_config
from vla_ft.planning.imagined import collate_one, imagine, widen
from vla_ft.policies.base import Batch
from vla_ft.policies.registry import load_policy
from vla_ft.training import rounding
from vla_ft.training.engines import Engine, build_engine
from vla_ft.training.optimizers import freeze_parts
from vla_ft.training.preparation import prepare_model
from vla_ft.training.trainer import train

WIDER = (
    "model.image_size=112", "data.image_size=[112,112]", "data.mock.image_size=[112,112]", "model.text_tokens=20",
    "model.vision_width=96", "model.vision_mlp=384", "model.vision_layers=6", "model.vlm_width=128",
    "model.vlm_mlp=512", "model.expert_width=64", "model.expert_mlp=256", "model.layers=6", "model.heads=4",
    "model.head_dim=32",
)  # fmt: skip
"""A form with the published proportions, about 1/18 as wide, and a quarter of the tokens."""
NEAREST = "bf16 weights, rounded to nearest"
"""What the published code does; no precision of ours, so the rounding is exchanged."""
PRECISIONS = {
    "fp32": (),
    "bf16 over fp32 weights": ("precision=bf16",),
    NEAREST: ("precision=bf16_stochastic", "freeze=[fixed]", "frozen_dtype=bf16"),
    "bf16 weights, stochastic": ("precision=bf16_stochastic", "freeze=[fixed]", "frozen_dtype=bf16"),
    "bf16 weights, Kahan": ("precision=bf16_kahan", "freeze=[fixed]", "frozen_dtype=bf16"),
    "bf16 weights, stochastic, 8-bit Adam": (
        "precision=bf16_stochastic", "freeze=[fixed]", "frozen_dtype=bf16", "optimizer.name=adamw8bit",
    ),
}  # fmt: skip


def engine_of(freeze: bool) -> tuple[Engine, Batch]:
    """A small model on the engine of one process, and a batch of its shapes."""
    config = load_run_config(["recipe=pizero-mock", *WIDER, "device=cpu", "batch.per_device=8"])
    description = imagine(config.data.mock)
    torch.manual_seed(0)
    model = load_policy("pizero").build_model(config.model, description)
    prepare_model(model, config)
    if freeze:
        freeze_parts(model, ("vlm",))
    engine = build_engine(config)
    engine.wrap(model)
    engine.build_optimizer()
    batch = widen(collate_one(config, description), config.batch.per_device)
    return engine, {**batch, "text": torch.ones_like(batch["text"]) * 5}


def step(engine: Engine, batch: Batch) -> None:
    """One whole update."""
    engine.zero_grad()
    engine.backward(engine.loss(batch).loss)
    engine.step()


def kept_bytes(engine: Engine, batch: Batch) -> dict[str, int]:
    """Bytes that a backward pass needs kept, of gradients, and of optimizer state."""
    weights = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = engine.loss(batch).loss
    engine.backward(loss)
    gradients = sum(p.grad.nbytes for p in engine.model.parameters() if p.grad is not None)
    engine.step()
    state = sum(v.nbytes for entries in engine.optimizer_state().values() for v in entries.values())
    return {"activations": sum(kept.values()), "gradients": gradients, "optimizer": state}


def freezing(pairs: int, steps: int) -> dict[str, Any]:
    """Bytes and seconds of an update, with the vision-language model trained and frozen, in turn."""
    engines = {"trained": engine_of(False), "frozen": engine_of(True)}
    held = {name: kept_bytes(*one) for name, one in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(pairs):
        for name, (engine, batch) in engines.items():
            started = time.process_time()
            for _ in range(steps):
                step(engine, batch)
            seconds[name].append((time.process_time() - started) / steps)
    ratios = [t / f for t, f in zip(seconds["trained"], seconds["frozen"], strict=True)]
    return {"bytes": held, "cpu_seconds": seconds, "median_ratio": statistics.median(ratios)}


def loss_gap(steps: int, seeds: int) -> dict[str, Any]:
    """Mean training loss over the last third of equal runs by precision and seed, and its gap to fp32 of that seed."""
    found = {name: [one_loss(name, words, steps, seed) for seed in range(seeds)] for name, words in PRECISIONS.items()}
    gaps = {name: [a / b - 1 for a, b in zip(row, found["fp32"], strict=True)] for name, row in found.items()}
    spread = {name: {"mean": statistics.mean(row), "least": min(row), "most": max(row)} for name, row in gaps.items()}
    return {"steps": steps, "losses": found, "gap_to_fp32": spread}


def one_loss(name: str, words: tuple[str, ...], steps: int, seed: int) -> float:
    """Of one run."""
    nearest = mock.patch.object(rounding, "round_stochastically", lambda exact, generator: exact.to(torch.bfloat16))
    with tempfile.TemporaryDirectory() as folder, nearest if name == NEAREST else nullcontext():
        common = ("recipe=pizero-mock", f"steps={steps}", f"output={folder}/run", "data.workers=0", "device=cpu")
        quiet = ("logging.every=1", f"validation.every={steps}", f"checkpoint.every={steps}", f"seed={seed}")
        train(load_run_config([*common, *quiet, *words]), Console(file=io.StringIO()))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        losses = [entry["train/loss"] for line in lines if "train/loss" in (entry := json.loads(line))]
        return statistics.mean(losses[-len(losses) // 3 :])


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("result", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("freezing", "loss"), help="measure this; keep the rest of the file")
    words = parser.parse_args()
    result = json.loads(words.result.read_text()) if words.only else {}
    if words.only != "loss":
        result["freezing"] = freezing(words.pairs, 3)
    if words.only != "freezing":
        result["loss"] = loss_gap(words.steps, words.seeds)
    result["torch"] = torch.__version__
    words.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
