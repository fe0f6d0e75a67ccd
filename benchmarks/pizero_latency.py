"""How long π0 takes from a picture to a chunk of actions, at full size or small, with random weights.

    PYTHONPATH=. python benchmarks/pizero_latency.py --device cuda --dtype bf16 --compile
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/pizero_latency.py --recipe pizero-mock --device cpu --runs 5

Published for open-pi-zero on an RTX 4090: 237 ms (fp32), 245 ms (bf16), compiled 89 and 75 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from vla_ft.config import load_run_config
from vla_ft.planning.imagined import collate_one, imagine
from vla_ft.policies.compiling import compile_blocks
from vla_ft.policies.registry import load_policy

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def measure(recipe: str, device: torch.device, dtype: torch.dtype, compiled: bool, runs: int) -> list[float]:
    """Milliseconds of each run after two that warm up."""
    config = load_run_config([f"recipe={recipe}", "data.path=mock", "init.path=null", "init.layout=auto"])
    description = imagine(config.data.mock)
    with torch.device("meta"):
        model = load_policy(config.policy).build_model(config.model, description).eval().to(dtype)
    model.to_empty(device=device)  # weights are never held in another type
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    if compiled:
        compile_blocks(model, device)
    batch = {key: value.to(device) for key, value in collate_one(config, description).items()}
    batch["proprio"] = batch["proprio"].to(dtype)
    noise = torch.zeros_like(batch["action"], dtype=dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken = []
    for number in range(runs + 2):
        started = time.perf_counter()
        model.sample_from(batch, noise)  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            taken.append(1000 * (time.perf_counter() - started))
    return taken


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="pizero-finetune")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bf16", choices=tuple(_TYPES))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--runs", type=int, default=30)
    words = parser.parse_args()
    device = torch.device(words.device)
    taken = measure(words.recipe, device, _TYPES[words.dtype], words.compile, words.runs)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    print(json.dumps({**vars(words), "on": name, "median_ms": statistics.median(taken), "peak_gib": peak, "ms": taken}))


if __name__ == "__main__":
    main()
