"""The document's launch line as it is typed: torchrun, two real processes over gloo, tiny widths, mock data."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vla_ft.tensor_stream import TensorReader

ROOT = Path(__file__).parents[3]
LAST = "{}/mock/checkpoints/step_00000002"
DOCUMENTED = "scripts/train.py --vla.type custom-finetune"
TINY = """
  --mock_data_num_trajs 4 --vla.per_device_batch_size 1 --vla.global_batch_size 4 --vla.max_steps 2 --save_interval 1
  --repeated_diffusion_steps 2 --action_model_type DiT-mock model.size=mock model.tokenizer=stand-in init.path=null
  model.image_size=28 data.image_size=[28,28] data.mock.image_size=[28,28] data.mock.min_length=8
  data.mock.max_length=9 data.workers=0 device=cpu
"""


def torchrun(output: Path, flags: str) -> str:
    """What two processes print; the one failure that counts is a code other than 0."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = f"{DOCUMENTED} {flags} --run_root_dir {output} --run_id mock {TINY}"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *shlex.split(line)], cwd=ROOT / "examples/cogact", env=variables, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights(output: Path) -> dict[str, torch.Tensor]:
    with TensorReader(Path(LAST.format(output)), "model") as reader:
        return {name: reader.tensor(name) for name in reader.entries}


@pytest.mark.nightly
def test_the_launch_line_on_two_processes_and_its_resume_flags(tmp_path: Path) -> None:
    said = torchrun(tmp_path, "--is_resume false")
    for words in ("Distributed World Size = 2", "Global (Effective) Batch Size = 4", "Gradient Accumulation Steps = 2",
                  "FSDP Full-Shard Strategy =>> Finalized Training Setup", "finished step 2"):  # fmt: skip
        assert said.count(words) == 1, f"{words}: one process speaks for both\n{said}"
    assert "W&B off" in said and "WandB is not logging" not in said
    whole, written = weights(tmp_path), LAST.format(tmp_path)
    before = os.stat(written).st_ino
    continued = torchrun(tmp_path, "--is_resume True --resume_step 1 --resume_epoch 0")
    assert "continues from step 1 with schedule, data position and generators" in continued
    assert os.stat(written).st_ino != before, "step 2 was taken again"
    again = weights(tmp_path)
    assert whole.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in whole.items())
