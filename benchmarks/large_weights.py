"""What loading a 30.5 GB checkpoint costs in memory and time: python benchmarks/large_weights.py OUTPUT.json"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "support" / "large_files.py"
KINDS = ("safetensors", "shards", "torch", "convert")


def measure(kind: str) -> dict[str, object]:
    """One kind in a process of its own, on sparse files that are removed again."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), kind, folder], stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
    return json.loads(done.stdout)


def library(kind: str) -> str:
    """What the usual call says to the same file, or that it worked."""
    call = {
        "safetensors": "from safetensors import safe_open; safe_open(path, 'pt')",
        "torch": "import torch; torch.load(path, mmap=True, weights_only=True)",
    }[kind]
    write = "import sys, pathlib, large_files as l; kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])"
    write += "; path = l.write(kind, folder, l.cogact_base())[0]"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", f"{write}; {call}", kind, folder],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        )  # fmt: skip
    return "worked" if done.returncode == 0 else done.stderr.strip().splitlines()[-1].replace(folder, "...")


def main() -> None:
    """Measure every kind, and write it all."""
    results = {
        "command": "python benchmarks/large_weights.py benchmarks/results/large_weights.json",
        "files": "sparse, CogACT-Base's names and shapes, float32",
        "measured": [measure(kind) for kind in KINDS],
        "libraries_on_the_same_files": {kind: library(kind) for kind in ("safetensors", "torch")},
    }
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")
    for one in results["measured"]:
        print(f"{one['kind']:12} {one['peak_anonymous_bytes'] / 1024**3:.2f} GiB anonymous, {one['seconds']} s")


if __name__ == "__main__":
    main()
