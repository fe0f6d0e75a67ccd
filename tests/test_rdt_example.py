"""The guide's finetune.sh, translated: every word it makes is understood by the trainer's configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vla_ft.config import load_run_config

SCRIPT = Path(__file__).parents[1] / "examples" / "rdt" / "finetune.sh"
PUBLISHED = (
    "--deepspeed=./configs/zero2.json", "--pretrained_model_name_or_path=robotics-diffusion-transformer/rdt-1b",
    "--output_dir=out", "--train_batch_size=32", "--max_train_steps=200000", "--checkpointing_period=1000",
    "--sample_period=500", "--checkpoints_total_limit=40", "--lr_scheduler=constant", "--learning_rate=1e-4",
    "--mixed_precision=bf16", "--dataloader_num_workers=8", "--dataset_type=finetune", "--state_noise_snr=40",
    "--load_from_hdf5", "--report_to=wandb", "--precomp_lang_embed", "--gradient_accumulation_steps=2",
    "--image_aug",
)  # fmt: skip


def translate(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "VLA_FT": "echo", **variables}
    return subprocess.run(["bash", str(SCRIPT), *flags], env=environment, capture_output=True, text=True)


def test_the_published_flags_become_a_configuration() -> None:
    done = translate(*PUBLISHED, RECIPE="rdt-1b", DATA="datasets/mine", WANDB_PROJECT="mine")
    assert done.returncode == 0, done.stderr
    command, *words = done.stdout.split()
    config = load_run_config(words)
    assert command == "train" and config.engine == "zero2" and config.output == "out"
    assert (config.batch.per_device, config.batch.accumulation, config.checkpoint.keep_last) == (32, 2, 40)
    assert config.init.path == "robotics-diffusion-transformer/rdt-1b" and config.data.path == "datasets/mine"
    assert (config.logging.wandb, config.logging.project) == ("online", "mine")
    assert config.model.conditions.state_noise_snr == 40.0 and config.data.augmentation == "rdt"


def test_no_weights_and_a_small_card() -> None:
    done = translate("--pretrained_model_name_or_path=None", "--use_8bit_adam", "--gradient_checkpointing", DATA="d")
    config = load_run_config(done.stdout.split()[1:])
    assert config.init.path is None and config.optimizer.name == "adamw8bit" and config.activation_checkpointing


@pytest.mark.parametrize("flag", ["--image_augh", "--alpha=0.9"])
def test_an_unknown_flag_is_an_error(flag: str) -> None:
    done = translate(flag, DATA="d")
    assert done.returncode == 2 and flag in done.stderr
