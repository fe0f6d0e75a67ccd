"""The guide's finetune.sh, translated: every word it makes is understood by the trainer's configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vla_ft.config import RunConfig, load_run_config
from vla_ft.training.compatibility import Setup, refuse

SCRIPT = Path(__file__).parents[1] / "examples" / "rdt" / "finetune.sh"
PUBLISHED = (
    "--deepspeed=./configs/zero2.json", "--pretrained_model_name_or_path=robotics-diffusion-transformer/rdt-1b",
    "--pretrained_text_encoder_name_or_path=google/t5-v1_1-xxl",
    "--pretrained_vision_encoder_name_or_path=google/siglip-so400m-patch14-384",
    "--output_dir=out", "--train_batch_size=32", "--sample_batch_size=64", "--max_train_steps=200000",
    "--checkpointing_period=1000", "--sample_period=500", "--checkpoints_total_limit=40", "--lr_scheduler=constant",
    "--learning_rate=1e-4", "--mixed_precision=bf16", "--dataloader_num_workers=8", "--image_aug",
    "--dataset_type=finetune", "--state_noise_snr=40", "--load_from_hdf5", "--report_to=wandb", "--precomp_lang_embed",
)  # fmt: skip
"""Every flag of the published script."""
TWO_WORDS = tuple(part for flag in PUBLISHED for part in flag.split("=", 1))


def translate(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "VLA_FT": "echo", **variables}
    return subprocess.run(["bash", str(SCRIPT), *flags], env=environment, capture_output=True, text=True)


def configured(*flags: str, **variables: str) -> RunConfig:
    """What the trainer gets, refused as it would be."""
    done = translate(*flags, **variables)
    assert done.returncode == 0, done.stderr
    command, *words = done.stdout.split()
    config = load_run_config(words)
    assert command == "train"
    refuse(Setup.of(config, 1, 1))
    return config


@pytest.mark.parametrize("flags", [PUBLISHED, TWO_WORDS])
@pytest.mark.parametrize("recipe", [{}, {"RECIPE": "rdt-1b"}])
def test_the_published_flags_become_a_configuration(flags: tuple[str, ...], recipe: dict[str, str]) -> None:
    config = configured(*flags, DATA="datasets/mine", WANDB_PROJECT="mine", **recipe)
    assert config.engine == "zero2" and config.output == "out" and config.optimizer.name == "adamw"
    assert (config.batch.per_device, config.batch.accumulation, config.checkpoint.keep_last) == (32, 1, 40)
    assert config.init.path == "robotics-diffusion-transformer/rdt-1b" and config.data.path == "datasets/mine"
    assert (config.logging.wandb, config.logging.project) == ("online", "mine")
    assert config.model.conditions.state_noise_snr == 40.0 and config.data.augmentation == "rdt"
    assert config.model.vision.weights == "google/siglip-so400m-patch14-384"
    assert (config.validation.samples, config.validation.training_samples) == (128, 128)
    assert (config.steps, config.optimizer.lr, config.data.workers) == (200000, 1e-4, 8)


def test_nothing_but_data_is_the_small_recipe() -> None:
    config = configured(DATA="d")
    assert config == load_run_config(["recipe=rdt-1b-16gb", "data.path=d", "output=checkpoints/rdt-finetune"])


def test_no_weights_and_a_small_card() -> None:
    flags = ("--pretrained_model_name_or_path=None", "--use_8bit_adam", "--gradient_checkpointing")
    config = configured(*flags, "--train_batch_size", "2", "--gradient_accumulation_steps", "16", DATA="d")
    assert config.init.path is None and config.optimizer.name == "adamw8bit" and config.activation_checkpointing
    assert (config.batch.per_device, config.batch.accumulation) == (2, 16)


def test_a_shell_that_sources_it_lives_on() -> None:
    for flags, code in (("data.path=d", 0), ("--alpha=0.9", 2)):
        command = f"source {SCRIPT} {flags}; echo lives, $?"
        environment = {"PATH": os.environ["PATH"], "VLA_FT": "echo"}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
        assert f"lives, {code}" in done.stdout, done


@pytest.mark.parametrize("flag", ["--image_augh", "--alpha=0.9", "--mixed_precision=fp16", "--train_batch_size"])
def test_an_unknown_flag_is_an_error(flag: str) -> None:
    done = translate(flag, DATA="d")
    assert done.returncode == 2 and flag in done.stderr
