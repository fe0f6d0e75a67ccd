"""Several training runs, one after another, inside one launch of several processes: starting them is what takes time.

``python engine_runs.py OUTPUT CASES PORTS`` is one of the processes; ``run_cases`` starts them all and judges by the
file that the main one leaves: a process may be aborted by gloo while it ends, after everything has been done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from narrow_trunk import narrow_trunk
from tiny_runs import ROOT, TINY

# The loss of a step depends on the samples alone: no dropout, no latent noise, no weighting by padded steps.
QUIET = (
    *TINY, "device=cpu", "model.dropout=0", "model.use_vae=false", "model.loss_reduction=all", "freeze=[]", "steps=5",
    "checkpoint.every=3", "checkpoint.keep_last=9", "validation.every=5",
)  # fmt: skip
DONE = "done.json"


def run_cases(output: Path, cases: Mapping[str, Sequence[str]], processes: int) -> None:
    """Train every case into ``output/NAME`` with QUIET and its words, in this order, on ``processes`` processes."""
    from vla_ft.training.launch import _environment, _free_port

    output.mkdir(parents=True, exist_ok=True)
    ports = ",".join(str(_free_port()) for _ in cases)
    command = [sys.executable, __file__, str(output), json.dumps(dict(cases)), ports]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    running = []
    for rank in range(processes):
        environment = _environment(rank, processes, 0) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        environment.pop("VLA_FT_DEVICE", None)
        with (output / f"log{rank}").open("w") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    for process in running:
        process.wait(timeout=600)
    logs = "\n".join((output / f"log{rank}").read_text()[-6000:] for rank in range(processes))
    done = output / DONE
    assert done.is_file() and json.loads(done.read_text()) == list(cases), logs


def single(output: Path, *words: str) -> None:
    """The same on this process alone. The global batch of two processes is the default."""
    from vla_ft.config import load_run_config
    from vla_ft.training.trainer import train

    with narrow_trunk():
        train(load_run_config([*QUIET, "batch.per_device=4", f"output={output}", *words]))


def _main() -> None:
    from vla_ft.config import load_run_config
    from vla_ft.training.trainer import train

    output, cases, ports = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3].split(",")
    finished = []
    for (name, words), port in zip(cases.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        with narrow_trunk():
            train(load_run_config([*QUIET, f"output={output / name}", *words]))
        finished.append(name)
    if os.environ["RANK"] == "0":
        (output / DONE).write_text(json.dumps(finished))


if __name__ == "__main__":
    _main()
