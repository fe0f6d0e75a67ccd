"""Speed of augmentation and resizing, and memory of statistics over many episodes. Prints JSON.

OMP_NUM_THREADS=1 python benchmarks/augmentation_and_statistics.py > benchmarks/results/augmentation_and_statistics.json
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vla_ft.data.augmentation import RECIPES, Augmentation, augment
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.images import resized
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import compute_statistics

STEPS, DIMENSIONS = 120, 7


class Columns(EpisodeReader):
    """Episodes whose numbers are made when they are asked for: all memory is the statistics' own."""

    def __init__(self, episodes: int) -> None:
        self.lengths = np.full(episodes, STEPS, dtype=np.int64)
        names = tuple(f"d{i}" for i in range(DIMENSIONS))
        self.description = DatasetDescription(
            name="columns",
            cameras={},
            action_names=names,
            action_units=("",) * DIMENSIONS,
            proprio_names=names,
            proprio_units=("",) * DIMENSIONS,
            action_kind="end_effector",
            action_mode="delta",
            gripper="",
            fps=10,
        )

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Normal numbers, the same for an episode every time."""
        rng = np.random.default_rng(episode)
        return {key: rng.standard_normal((len(steps), DIMENSIONS), dtype=np.float32) for key in keys}

    def instruction(self, episode: int) -> str:
        """None."""
        return ""

    def fingerprint(self) -> str:
        """One for each number of episodes."""
        return str(len(self.lengths))

    def sources(self) -> dict[str, Any]:
        """No files."""
        return {}

    def name_of(self, episode: int) -> str:
        """Its number."""
        return str(episode)


def rate(work: Callable[[int], Any], count: int = 200) -> dict[str, float]:
    """Calls a second, of the CPU and of the clock."""
    work(0)
    cpu, clock = time.process_time(), time.perf_counter()
    for number in range(count):
        work(number)
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    return {"per_cpu_second": round(count / cpu, 1), "per_second": round(count / clock, 1)}


def images() -> dict[str, Any]:
    """Images a second, single-threaded NumPy."""
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((224, 224), (480, 640)))
    results = {}
    for name in ("cogact", "pizero"):
        config = RECIPES[name]
        assert config is not None
        recipe = Augmentation(config, 0)
        results[f"augment {name} 224x224"] = rate(lambda i, recipe=recipe: augment(small, recipe.draw(i)))
    results["resize 480x640 to 224x224"] = rate(lambda _: resized(large, (224, 224)))
    return results


def statistics() -> list[dict[str, Any]]:
    """Seconds and peak resident memory, growing sets in one process."""
    rows = []
    for episodes in (1_000, 10_000, 100_000):
        start = time.process_time()
        made = compute_statistics(Columns(episodes), np.arange(episodes))
        rows.append(
            {
                "episodes": episodes,
                "steps": made["action"].count,
                "cpu_seconds": round(time.process_time() - start, 2),
                "peak_resident_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "q01_error": float(np.abs(made["action"].q01 + 2.3263479).max()),
            }
        )
    return rows


if __name__ == "__main__":
    load = os.getloadavg()[0]
    print(json.dumps({"load_before": load, "images": images(), "statistics": statistics()}, indent=1))
