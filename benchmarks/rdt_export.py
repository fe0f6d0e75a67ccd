"""Peak memory of exporting rdt-170m to the published folder, streamed and with all weights in memory. Prints JSON.

OMP_NUM_THREADS=1 python benchmarks/rdt_export.py > benchmarks/results/rdt_export.json
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from vla_ft.data.mock import MockConfig, describe
from vla_ft.planning.imagined import plain_statistics
from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.rdt.checkpoint import TOWER
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.publish import write_published
from vla_ft.tensor_stream import Announced, Entry


def measure(way: str, folder: Path) -> dict[str, float]:
    """Write fp32 weights that are made when they are asked for; what this process needed beyond its start."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Rdt(Config.small()).state_dict().items()}
    entries = [Entry(name, shape, torch.float32) for name, shape in shapes.items()]
    tensors = Announced(entries, lambda entry: torch.full(entry.shape, 0.5))
    about = describe(MockConfig())
    facts = TrainedFacts(config=Config.small(), description=about, statistics=plain_statistics(about), step=1)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if way == "streamed":
        write_published(folder, tensors, facts)
    else:
        save_file({name: value for name, value in tensors if not name.startswith(TOWER)}, folder / "model.safetensors")
    return {
        "mib_on_disk": round((folder / "model.safetensors").stat().st_size / 2**20, 1),
        "largest_tensor_mib": round(max(e.nbytes for e in entries if not e.name.startswith(TOWER)) / 2**20, 1),
        "peak_mib_beyond_start": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, 1),
        "seconds": round(time.perf_counter() - started, 2),
    }


def main() -> None:
    """Each way in a process of its own."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
        return
    found = {}
    for way in ("streamed", "all_in_memory"):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, __file__, way, folder], stdout=subprocess.PIPE, text=True, check=True
            )
        found[way] = json.loads(done.stdout)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
