"""RDT's chunk with the keys and values of its conditions computed once, against once in each step of the solver.

    OMP_NUM_THREADS=1 python benchmarks/rdt_kept_conditions.py --hidden-size 256 --depth 8 --heads 8 --pairs 7
    python benchmarks/rdt_kept_conditions.py --device cuda --dtype bf16 --hidden-size 2048 --depth 28 --heads 32

Random weights, 4374 image tokens and 32 of language as in use. The image tower, which both ways run once, is left out.
The two ways take turns, and each pair is one ratio: what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from vla_ft.policies.rdt.conditions import Conditions
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.vector import WIDTH

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WORDS = 32


def conditions(config: Config, device: torch.device, dtype: torch.dtype) -> Conditions:
    """One sample's."""
    with device:
        return Conditions(
            state=torch.randn(1, 1, WIDTH, dtype=dtype),
            mask=torch.ones(1, 1, WIDTH, dtype=dtype),
            action_mask=torch.ones(1, 1, WIDTH, dtype=dtype),
            rate=torch.tensor([25]),
            language=torch.randn(1, _WORDS, config.language.width, dtype=dtype),
            language_mask=torch.ones(1, _WORDS, dtype=torch.bool),
            valid=torch.ones(1, config.history, 3, dtype=torch.bool),
        )


@torch.no_grad()
def measure(config: Config, device: torch.device, dtype: torch.dtype, pairs: int) -> dict[str, object]:
    """Seconds of each pair, in turns, after one of each that warms up."""
    with device:
        model = Rdt(config).eval().to(dtype)
        torch.nn.init.normal_(model.model.final_layer.ffn_final.fc2.weight, std=0.05)  # fresh, it predicts zero
        images = torch.randn(1, config.image_tokens, config.vision.hidden_size, dtype=dtype)
        noise = torch.randn(1, config.chunk_size, WIDTH, dtype=dtype)
    given = conditions(config, device, dtype)
    taken: dict[bool, list[float]] = {True: [], False: []}
    found: dict[bool, torch.Tensor] = {}
    for number in range(pairs + 1):
        for keep in (False, True):
            started = time.perf_counter()
            found[keep] = model.sample_from(given, images, noise, keep=keep)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                taken[keep].append(time.perf_counter() - started)
    ratios = sorted(slow / fast for slow, fast in zip(taken[False], taken[True], strict=True))
    return {
        "largest_difference": (found[True] - found[False]).abs().max().item(),
        "largest_value": found[True].abs().max().item(),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "seconds_each_step": taken[False],
        "seconds_once": taken[True],
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="fp32", choices=tuple(_TYPES))
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=14)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    words = parser.parse_args()
    device = torch.device(words.device)
    config = Config(hidden_size=words.hidden_size, depth=words.depth, heads=words.heads)
    result = measure(config, device, _TYPES[words.dtype], words.pairs)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(json.dumps({**vars(words), "on": name, **result}, indent=1))


if __name__ == "__main__":
    main()
