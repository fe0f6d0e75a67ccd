"""A run's end: processes that share gradients leave their group, every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_runs import ROOT

from vla_ft.training.launch import _environment

# torch 2.13 on two cores: without the engine's own order of leaving, one of two processes hung within these rounds in
# every trial.
ROUNDS = 60
SCRIPT = f"""
import sys
from pathlib import Path
import torch
from engine_runs import _agree_on_port
from torch import nn
from vla_ft.config import load_run_config
from vla_ft.policies.base import Loss, Model
from vla_ft.training.engines.ddp import DdpEngine

class Line(Model):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 4)
    def forward(self, batch):
        return Loss(self.line(batch["action"]).sum())
    def sample(self, batch):
        return self.line(batch["action"])
    def parameter_groups(self):
        return {{"line": list(self.named_parameters())}}
    def blocks(self):
        return []

config = load_run_config(["recipe=act-mock", "engine=ddp", "device=cpu"])
for number in range({ROUNDS}):
    _agree_on_port(Path(sys.argv[1]) / f"port_{{number}}")
    engine = DdpEngine(config, torch.device("cpu"))
    engine.wrap(Line())
    engine.loss({{"action": torch.ones(2, 4)}}).loss.backward()
    engine.gather("a tensor with a Python object travels last")
    engine.close()
    del engine  # at once, while the last collective is being put away
"""


def test_two_processes_leave_their_group_every_time(tmp_path: Path) -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env={**os.environ, **_environment(rank, 2, 0), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
