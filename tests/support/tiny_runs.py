"""Real training runs in processes of their own, small enough for two CPU cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Everything that has a state is on: dropout, latent noise, average, accumulation, warm-up, clipping. The image trunk is
# frozen, which makes checkpoints a quarter as large; WHOLE trains it as well.
TINY = (
    "recipe=act-mock", "steps=8", "batch.per_device=2", "batch.accumulation=2", "data.workers=0",
    "data.mock.episodes=4", "data.mock.min_length=8", "data.mock.max_length=12", "data.mock.image_size=[32,32]",
    "model.chunk_size=4", "model.hidden_dim=16", "model.heads=2", "model.feedforward_dim=16", "model.dropout=0.1",
    "model.encoder_layers=1", "model.vae_encoder_layers=1", "ema.decay=0.9", "optimizer.clip_grad_norm=1.0",
    "schedule.name=cosine", "schedule.warmup_steps=2", "checkpoint.every=2", "checkpoint.keep_last=2",
    "validation.every=4", "validation.samples=4", "logging.every=1", "freeze=[backbone]",
)  # fmt: skip
WHOLE = "freeze=[]"
MACHINE = ("train/samples_per_second", "train/memory_gib", "seconds_per_batch", "seconds_per_epoch", "waiting_share",
           "gpu_utilization", "gpu_memory_gib")  # fmt: skip
"""Logged scalars that depend on the machine and its load."""


def start(output: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """``vla-ft train`` with TINY and further words, in a process of its own."""
    command = [sys.executable, "-m", "vla_ft", "train", *TINY, f"output={output}", *words]
    variables = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT), **environment}
    variables.pop("VLA_FT_DEVICE", None)
    # A process group of its own, so that a test can signal all of it as a terminal or a scheduler does.
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a run and return its output; its exit code must be ``code``."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code, out
    return out


def wait_for_step(output: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has logged ``step``."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the run ended before step {step}:\n{process.communicate()[0]}")
        if any(line["step"] >= step for line in metrics(output)):
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} did not come")


def metrics(output: Path) -> list[dict[str, float]]:
    """Logged scalars that depend on nothing but the run itself: no rates, no memory."""
    path = output / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [{k: v for k, v in line.items() if k not in MACHINE} for line in lines]


def final_bytes(output: Path, step: int = 8) -> dict[str, bytes]:
    """Every file of a checkpoint that must be equal to the bit."""
    folder = output / "checkpoints" / f"step_{step:08d}"
    names = ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "trainer.json", "statistics.json"]
    names += [path.name for path in folder.glob("random_rank*.json")]
    return {name: (folder / name).read_bytes() for name in names}
