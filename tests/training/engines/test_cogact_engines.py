"""CogACT on two processes: the losses of one, shards resumed by another engine, and bf16 shards close to fp32."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from engine_runs import run_cases
from rich.console import Console
from tiny_runs import metrics

from vla_ft.config import load_run_config
from vla_ft.training.trainer import train

# `run_cases` puts its own words first; these make them CogACT's. No condition dropout: what is drawn per sample
# (noise, steps) is drawn per process, so that losses of two processes are compared with two processes.
COGACT = (
    "recipe=cogact-mock", "steps=3", "batch.per_device=1", "batch.accumulation=1", "data.workers=0", "device=cpu",
    "data.mock.episodes=4", "data.mock.min_length=8", "data.mock.max_length=10", "model.image_size=28",
    "data.image_size=[28,28]", "model.repeated_diffusion_steps=2", "model.num_ddim_steps=2", "validation.every=3",
    "validation.samples=4", "logging.every=1", "checkpoint.every=2", "checkpoint.keep_last=9",
)  # fmt: skip
CASES: dict[str, Sequence[str]] = {
    "ddp": ("engine=ddp",),
    "fsdp2": ("engine=fsdp2", "activation_checkpointing=true"),
}
NIGHTLY: dict[str, Sequence[str]] = {
    "offload": ("engine=fsdp2", "offload=all"),
    "kahan": ("engine=fsdp2", "precision=bf16_kahan", "optimizer.name=adamw8bit"),
    "stochastic": ("engine=fsdp2", "precision=bf16_stochastic", "optimizer.name=adamw8bit"),
    "lora": ("engine=fsdp2", "lora.llm.rank=2", "freeze=[vision]", "frozen_dtype=bf16", "precision=bf16"),
    "cached": ("engine=ddp", "freeze=[vision,projector,llm]", "frozen_features.parts=[vlm]"),
    "zero1": ("engine=zero1",),
}


def losses(output: Path) -> np.ndarray:
    return np.array([line["train/loss"] for line in metrics(output)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on two processes, in one launch."""
    output = tmp_path_factory.mktemp("cogact_engines")
    run_cases(output, CASES, processes=2, base=COGACT)
    return output


def test_sharded_and_replicated_train_alike(runs: Path) -> None:
    assert len(losses(runs / "ddp")) == 3
    np.testing.assert_allclose(losses(runs / "fsdp2"), losses(runs / "ddp"), rtol=2e-6)
    for key in ("validation/loss", "validation/action_mae"):
        assert metrics(runs / "fsdp2")[-1][key] == pytest.approx(metrics(runs / "ddp")[-1][key], rel=2e-5)


def test_one_process_goes_on_from_shards(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fsdp2", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000003")
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step_00000002")
    words = [*COGACT, "engine=single", "batch.per_device=2", f"output={tmp_path / 'run'}"]
    train(load_run_config(words), Console(quiet=True))
    seen = losses(tmp_path / "run")
    assert len(seen) == 3 and np.isfinite(seen).all()
    np.testing.assert_array_equal(seen[:2], losses(runs / "fsdp2")[:2])


@pytest.mark.nightly
def test_every_other_way_stays_close(runs: Path, tmp_path: Path) -> None:
    run_cases(tmp_path, NIGHTLY, processes=2, base=COGACT)
    for name, tolerance in {"offload": 2e-6, "kahan": 2e-2, "stochastic": 2e-2, "zero1": 2e-6}.items():
        np.testing.assert_allclose(losses(tmp_path / name), losses(runs / "ddp"), rtol=tolerance, err_msg=name)
    for name in ("lora", "cached"):
        assert np.isfinite(losses(tmp_path / name)).all() and len(losses(tmp_path / name)) == 3
