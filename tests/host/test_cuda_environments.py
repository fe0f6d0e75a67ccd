"""The CUDA environments, made from their locks; their wheels run on a CPU, so numbers and resume are proved in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vla_ft.environment.table import load_table
from vla_ft.host.local import LocalEnvironment

ROOT = Path(__file__).parents[2]
PROOF = ("tests/golden", "tests/training/test_exact_resume.py", "tests/training/test_trainer.py")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["cu126", "cu128"])
def test_golden_numbers_and_exact_resume(name):
    environment = load_table().environment(name)
    python = LocalEnvironment(environment).ensure()
    proof = "import torch; print(torch.__version__, torch.version.cuda, torch._C._cuda_getArchFlags())"
    seen = subprocess.run([str(python), "-c", proof], capture_output=True, text=True, check=True).stdout.split()
    assert seen[0].split("+")[0] == environment.torch.split("+")[0]
    assert seen[1] == environment.cuda
    assert set(environment.sm) <= set(seen[2:])
    variables = {**os.environ, "VLA_FT_ENVIRONMENT": name, "VLA_FT_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", *PROOF], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
