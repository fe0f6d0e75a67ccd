"""Processor time of ``vla-ft plan``, each recipe in a process of its own, and the numbers that it finds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
ASKED = {
    "act": "card=22GiB cards=4",
    "pizero-full-24gb": "card=24GiB cards=1",
    "rdt-1b-16gb": "card=16GiB cards=1",
    "custom-finetune": "card=22GiB cards=4",
    "cogact-base-4x22gb": "card=22GiB cards=4",
    "cogact-base-lora-24gb": "card=24GiB cards=1",
    "cogact-head-cached": "card=24GiB cards=1",
}


def planned(recipe: str) -> dict[str, Any]:
    """The whole command, imports and picture included."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"recipe={recipe}", *ASKED[recipe].split()]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "vla_ft", "plan", *words, f"output={folder}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        plan = json.loads((Path(folder) / "plan.json").read_text())
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = {
        "words": " ".join(words), "cpu_seconds": round(used, 1),
        "gib_needed_as_asked": round(plan["options"][0]["needed"] / GIB, 2),
        "largest_batch": plan["largest_batch_per_device"], "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(row, flush=True)
    return row


def main() -> None:
    """Plan all recipes, or those named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("recipes", nargs="*", default=[])
    asked = parser.parse_args()
    result = {
        "command": f"OMP_NUM_THREADS=1 PYTHONPATH=. python {' '.join(sys.argv)}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU, shared with other jobs (load in each row)",
        "torch": torch.__version__,
        "plans": [planned(recipe) for recipe in asked.recipes or ASKED],
    }
    asked.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
