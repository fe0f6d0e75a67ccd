"""CogACT's DiT-B on the CPU: seconds of a training step and of DDIM-10, as multiples of their matrix products' time.

    OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 python benchmarks/cogact_head.py benchmarks/results/cogact_head.json

The machine's rate is measured before and after every repetition, by products of 2048 x 2048 float32 matrices; of
several repetitions the median counts. Both are taken by the clock and in seconds of processor time over all threads: on
a machine that does other work as well, the second says more. Floating-point operations are counted by torch; one
more step under its profiler says which share of the step its own matrix products take.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vla_ft.policies.cogact.config import SMALL_LLAMA, SMALL_TOWERS, Config
from vla_ft.policies.cogact.model import COGNITION, CogAct

BATCH, REPEATS, HORIZON, ACTIONS, CONDITION = 8, 8, 16, 7, 4096
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise")


class HeadAlone(Config):
    """DiT-B behind a language model that is as wide as Llama-2-7B and has no layers."""

    towers = SMALL_TOWERS

    @property
    def llama(self) -> Any:
        """Widths alone: nothing of it is run."""
        return type(SMALL_LLAMA)(width=CONDITION, depth=0, heads=32, feedforward=8, vocabulary=8)


Times = tuple[float, float]
"""Seconds by the clock, and of processor time."""


def product(repetitions: int = 5) -> Times:
    """A square float32 product, the mean of a few."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    clock, processor = seconds(lambda: [a @ b for _ in range(repetitions)])
    return clock / repetitions, processor / repetitions


def seconds(action: Callable[[], object]) -> Times:
    """Of one call."""
    start = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def linear_operations(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of oneDNN's linear layer, which torch's counter does not know."""
    return 2 * math.prod(x) * weight[0]


COUNTED = {torch.ops.mkldnn._linear_pointwise: linear_operations} if torch.backends.mkldnn.is_available() else {}


def operations(action: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and attention in one call."""
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        action()
    return counter.get_total_flops()


def measure(action: Callable[[], object], repetitions: int) -> dict[str, Any]:
    """Medians of the seconds, and of each repetition's multiple of its matrix products' time at the rate then."""
    flops = operations(action)  # and warms up
    products = flops / (2 * 2048**3)
    rows = []
    for _ in range(repetitions):
        before, taken, after = product(), seconds(action), product()
        row = {}
        for kind, one, first, last in zip(("clock", "processor"), taken, before, after, strict=True):
            alone = products * (first + last) / 2
            row |= {f"{kind}_seconds": one, f"{kind}_matmul_seconds": alone, f"{kind}_multiple": one / alone}
        rows.append(row)
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {"floating_point_operations": flops, **middle, "repetitions": rows}


def share_of_products(action: Callable[[], object]) -> float:
    """Of the processor time of one call, what its own matrix products take, whatever rate they reach."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        action()
    rows = {row.key: row.self_cpu_time_total for row in seen.key_averages()}
    return sum(rows.get(name, 0.0) for name in PRODUCTS) / sum(rows.values())


def head_actions() -> dict[str, Callable[[], object]]:
    """A training step (forward, backward, fused AdamW) and DDIM-10 with guidance, batch 8."""
    torch.manual_seed(0)
    model = CogAct(HeadAlone(repeated_diffusion_steps=REPEATS), ACTIONS)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=1e-4, fused=True)
    batch = {COGNITION: torch.randn(BATCH, 1, CONDITION), "action": torch.randn(BATCH, HORIZON, ACTIONS)}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch).loss.backward()
        optimizer.step()

    @torch.no_grad()
    def sample() -> None:
        model.sample(batch)

    return {"training_step": step, "ddim_10": sample}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    before = os.getloadavg()
    found: dict[str, Any] = {
        "setting": {"batch": BATCH, "repeats": REPEATS, "chunk": [HORIZON, ACTIONS], "head": "DiT-B", "guidance": 1.5},
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                    "threads": torch.get_num_threads(), "torch": torch.__version__, "load_before": before},
    }  # fmt: skip
    for name, action in head_actions().items():
        found[name] = measure(action, options.repetitions)
        found[name]["share_of_its_own_products"] = share_of_products(action)
        found["machine"]["load_after"] = os.getloadavg()
        options.result.write_text(json.dumps(found, indent=1))
    for name in ("training_step", "ddim_10"):
        one = found[name]
        print(
            f"{name}: {one['clock_seconds']:.2f} s, {one['clock_multiple']:.2f} x its matrix products; "
            f"processor {one['processor_seconds']:.2f} s, {one['processor_multiple']:.2f} x; "
            f"{one['share_of_its_own_products']:.1%} in its own products"
        )


if __name__ == "__main__":
    main()
