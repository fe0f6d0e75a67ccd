"""Several training runs, one after another, inside one launch of several processes: starting them is what takes time.

``python engine_runs.py OUTPUT CASES`` is one of the processes; ``run_cases`` starts them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from even_noise import even_noise
from narrow_trunk import narrow_trunk
from tiny_runs import ROOT, TINY

# The loss of a step depends on the samples alone: no dropout, no latent noise, no weighting by padded steps.
QUIET = (
    *TINY, "device=cpu", "model.dropout=0", "model.use_vae=false", "model.loss_reduction=all", "freeze=[]", "steps=5",
    "checkpoint.every=3", "checkpoint.keep_last=9", "validation.every=5",
)  # fmt: skip
DONE = "done.json"
EVEN = "even"


def run_cases(
    output: Path, cases: Mapping[str, Sequence[str]], processes: int, base: Sequence[str] = QUIET, *, even: bool = False
) -> None:
    """Train every case into ``output/NAME`` with ``base`` and its words, in this order, on ``processes`` processes;
    ``even`` with noise that does not depend on how batches are cut (``even_noise``)."""
    from vla_ft.training.launch import _environment

    output.mkdir(parents=True, exist_ok=True)
    for stale in [output / DONE, *output.glob("port_*")]:
        stale.unlink(missing_ok=True)
    command = [sys.executable, __file__, str(output), json.dumps({n: [*base, *words] for n, words in cases.items()})]
    command += [EVEN] if even else []
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    running = []
    for rank in range(processes):
        environment = _environment(rank, processes, 0) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        environment.pop("VLA_FT_DEVICE", None)
        with (output / f"log{rank}").open("w") as log:
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    _wait(running, time.monotonic() + 600)
    logs = "\n".join((output / f"log{rank}").read_text()[-6000:] for rank in range(processes))
    done = output / DONE
    assert [process.returncode for process in running] == [0] * processes, logs
    assert json.loads(done.read_text()) == list(cases), logs


def single(output: Path, *words: str) -> None:
    """The same on this process alone. The global batch of two processes is the default."""
    from vla_ft.config import load_run_config
    from vla_ft.training.trainer import train

    with narrow_trunk():
        train(load_run_config([*QUIET, "batch.per_device=4", f"output={output}", *words]))


def _wait(running: Sequence[subprocess.Popen[bytes]], deadline: float) -> None:
    """Until all have ended; when one has failed, the others would wait for it in vain."""
    while None in [process.poll() for process in running] and time.monotonic() < deadline:
        if any(process.returncode for process in running):
            deadline = min(deadline, time.monotonic() + 20)
        time.sleep(0.1)
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def _agree_on_port(place: Path) -> None:
    """The main process takes a free port only when it is needed: gloo's own sockets take free ports as well."""
    from vla_ft.training.launch import _free_port

    if os.environ["RANK"] == "0":
        place.with_suffix(".new").write_text(str(_free_port()))
        place.with_suffix(".new").rename(place)
    while not place.is_file():
        time.sleep(0.02)
    os.environ["MASTER_PORT"] = place.read_text()


def _main() -> None:
    from vla_ft.config import load_run_config
    from vla_ft.training.launch import leave
    from vla_ft.training.trainer import train

    output, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    finished = []
    for name, words in cases.items():
        _agree_on_port(output / f"port_{name}")
        with narrow_trunk(), even_noise() if EVEN in sys.argv else nullcontext():
            train(load_run_config([f"output={output / name}", *words]))
        finished.append(name)
    if os.environ["RANK"] == "0":
        (output / DONE).write_text(json.dumps(finished))
    leave(0)


if __name__ == "__main__":
    _main()
