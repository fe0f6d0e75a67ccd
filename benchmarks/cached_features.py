"""Training from a frozen trunk's cached features against running the trunk: paired, alternating, in fresh processes.

    python benchmarks/cached_features.py result.json --pairs 4 --steps 60 --threads 2 -- recipe=act-small data.path=...
    python benchmarks/cached_features.py result.json --backbone clip_vit_b32 -- recipe=act-small data.path=...

Every run is `vla-ft train` with the given words and ``freeze=[backbone]``; odd ones add the cache, made beforehand and
timed. A rate is samples a second after the first steps, which wait for workers and warm caches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SKIPPED = 4
CACHE = "frozen_features.parts=[backbone]"


def train(output: Path, words: list[str], steps: int, threads: int) -> tuple[float, str]:
    """One run; returns samples a second and what it printed."""
    rate = ["logging.every=1", f"checkpoint.every={steps}", f"validation.every={steps}", "validation.samples=1"]
    command = [sys.executable, "-m", "vla_ft", "train", *words, "freeze=[backbone]", *rate]
    command += [f"steps={steps}", f"output={output}", "device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    # A logged rate counts from the run's beginning up to 63 steps: the difference of two gives what lies between.
    begin, end = (lines[min(number, steps) - 1] for number in (SKIPPED, steps))
    elapsed = [line["step"] / line["train/samples_per_second"] for line in (begin, end)]
    return (end["step"] - begin["step"]) / max(elapsed[1] - elapsed[0], 1e-9), done.stdout


def main() -> None:
    """Make the cache, run the pairs, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60, help="5 to 63")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", help="the image trunk (model.backbone); its weights are random without init.path")
    parser.add_argument("words", nargs="+")
    options = parser.parse_args()
    if options.backbone is not None:
        options.words.append(f"model.backbone={options.backbone}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cached = [*options.words, CACHE, f"frozen_features.path={root / 'features'}"]
        _, printed = train(root / "making", cached, 1, options.threads)
        made = re.sub(r"[\s│]+", " ", printed)
        pairs: list[dict[str, float]] = []
        for _ in range(options.pairs):
            pair = {}
            for name, words in (("images", options.words), ("cached", cached)):
                pair[name], _ = train(root / "run", words, options.steps, options.threads)
                shutil.rmtree(root / "run")
            pairs.append(pair)
    write(options, pairs, made, time.perf_counter() - started)


def write(options: argparse.Namespace, pairs: list[dict[str, float]], made: str, seconds: float) -> None:
    """The raw numbers, their median ratio, and on what."""
    found = re.search(r"made in (\d+) s, ([\d,]+) rows, ([\d.]+) GiB", made)
    ratios = [pair["cached"] / pair["images"] for pair in pairs]
    report: dict[str, Any] = {
        "samples_per_second": pairs,
        "ratio": ratios,
        "ratio_median": statistics.median(ratios),
        "cache": {"seconds": int(found[1]), "rows": int(found[2].replace(",", "")), "gib": float(found[3])}
        if found
        else {},
        "words": options.words,
        "weights": "given" if any(word.startswith("init.path=") for word in options.words) else "random",
        "steps": options.steps,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "load_average_at_the_end": os.getloadavg()[0],
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "seconds_in_all": round(seconds),
    }
    options.result.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
