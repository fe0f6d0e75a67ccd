"""Real steps under engines of several processes, and what each process's allocator gave out.

``measure_cases`` starts this file once per process; each case takes a port of its own, one after another.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = (
    "recipe=act-mock", "device=cpu", "data.mock.image_size=[64,96]", "data.mock.cameras=[a,b]", "batch.per_device=4",
    "model.dropout=0.1",
)  # fmt: skip
WORLD = 2
CASES = (
    "engine=ddp",
    "engine=ddp,precision=bf16,batch.accumulation=2",
    "engine=fsdp2",
    "engine=fsdp2,precision=bf16",
    "engine=fsdp2,precision=bf16_kahan,batch.per_device=1",
    "engine=fsdp2,freeze=[backbone]",
    "engine=fsdp2,ema.decay=0.9,batch.accumulation=2",
    "engine=fsdp2,activation_checkpointing=true,batch.per_device=16",
)
"""Words of a configuration, by commas."""
ZERO_CASES = (
    "engine=zero2,precision=bf16",
    "engine=zero2,precision=bf16,batch.per_device=1",
)
"""The same; they need DeepSpeed."""


def measure_cases(folder: Path, cases: Sequence[str] = CASES) -> dict[str, int]:
    """The fuller process's peak, bytes, by case."""
    ports = ",".join(str(_free_port()) for _ in cases)
    command = [sys.executable, __file__, str(folder), ports, *cases]
    shared = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    running = []
    for rank in range(WORLD):
        with (folder / f"log{rank}").open("w") as log:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    for process in running:
        process.wait(timeout=400)
    results = sorted(folder.glob("rank*.json"))
    logs = "\n".join((folder / f"log{rank}").read_text()[-4000:] for rank in range(WORLD))
    assert len(results) == WORLD, logs  # not the exit codes: gloo's teardown may abort after all is written
    peaks = [json.loads(path.read_text()) for path in results]
    return {case: max(one[case] for one in peaks) for case in cases}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _main() -> None:
    from vla_ft.config import load_run_config
    from vla_ft.planning.imagined import describe
    from vla_ft.planning.measurement import measure_step
    from vla_ft.training.engines import build_engine

    folder, ports, cases = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
    peaks, rank = {}, 0
    for case, port in zip(cases, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        config = load_run_config([*SMALL, *case.split(",")])
        engine = build_engine(config)
        rank = engine.rank
        peaks[case] = measure_step(config, describe(config), engine).peak
        engine.close()
    (folder / f"rank{rank}.json").write_text(json.dumps(peaks))


if __name__ == "__main__":
    _main()
