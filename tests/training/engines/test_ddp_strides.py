"""DDP and gradients of 1x1 convolutions over images with channels last: no warning, and the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_runs import ROOT

from vla_ft.training.launch import _environment

SCRIPT = """
import sys
from pathlib import Path
import torch
from engine_runs import _agree_on_port
from torch import nn
from vla_ft.config import load_run_config
from vla_ft.policies.base import Loss, Model
from vla_ft.training.engines.ddp import DdpEngine

class Project(Model):
    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(512, 16, 1)
    def forward(self, batch):
        return Loss(self.sample(batch).square().sum())
    def sample(self, batch):
        return self.project(batch["image"])
    def parameter_groups(self):
        return {"project": list(self.named_parameters())}
    def blocks(self):
        return []

_agree_on_port(Path(sys.argv[1]) / "port")
torch.set_warn_always(True)
batch = {"image": torch.randn(16, 512, 7, 7).contiguous(memory_format=torch.channels_last)}
alone, shared = Project(), Project()
shared.load_state_dict(alone.state_dict())
alone(batch).loss.backward()
engine = DdpEngine(load_run_config(["recipe=act-mock", "engine=ddp", "device=cpu"]), torch.device("cpu"))
engine.wrap(shared)
engine.loss(batch).loss.backward()
assert alone.project.weight.grad.stride() != shared.project.weight.stride(), "this batch shows nothing"
for one, other in zip(alone.parameters(), shared.parameters()):
    assert torch.equal(one.grad, other.grad)
engine.close()
"""


def test_a_1x1_convolution_gives_no_warning_and_the_same_gradients(tmp_path: Path) -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    environment = {**os.environ, **_environment(0, 1, 0), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "strides" not in done.stderr, done.stderr
