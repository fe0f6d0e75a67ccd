"""CogACT's published launch lines: each flag has its counterpart or is refused in words; the summary it printed."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from vla_ft.config import load_run_config
from vla_ft.data.opening import find_mix
from vla_ft.errors import UserError
from vla_ft.policies.base import SetupFacts
from vla_ft.policies.cogact.published_flags import FLAGS
from vla_ft.policies.cogact.setup_lines import setup_lines
from vla_ft.policies.cogact.translate import launched_processes, translate

ROOT = Path(__file__).parents[3]
FINE_TUNE = """
  --pretrained_checkpoint CogACT/CogACT-Base --vla.type prism-dinosiglip-224px+oxe+diffusion --vla.data_mix bridge
  --vla.expected_world_size 8 --vla.global_batch_size 256 --vla.per_device_batch_size 32 --vla.learning_rate 2e-5
  --data_root_dir /data/oxe --run_root_dir /runs --run_id first --image_aug True --wandb_project mine
  --wandb_entity us --save_interval 500 --repeated_diffusion_steps 8 --future_action_window_size 15
  --action_model_type DiT-B --is_resume False
"""
CUSTOM = (
    "--vla.type custom-finetune --pretrained_checkpoint CogACT/CogACT-Base --hf_token hf_{secret} --is_resume false"
)


def configured(line: str, launched: int | None = None):
    return load_run_config(translate(shlex.split(line), launched).words)


def test_the_fine_tuning_line() -> None:
    found = translate(shlex.split(FINE_TUNE), 8)
    config = load_run_config(found.words)
    batch, model = config.batch, config.model
    assert (batch.per_device, batch.accumulation, config.optimizer.lr) == (32, 1, 2e-5)
    assert (config.data.path, config.data.mix, config.data.augmentation) == ("/data/oxe", "bridge_orig", "cogact")
    assert list(find_mix("bridge_orig")) == ["bridge_orig"] and list(find_mix("custom_finetuning"))
    assert (config.output, config.checkpoint.every) == ("/runs/first--image_aug", 500)
    assert (model.repeated_diffusion_steps, model.future_action_window_size, model.action_model_type) == (
        8,
        15,
        "DiT-B",
    )
    assert (config.init.path, config.resume, config.engine) == ("CogACT/CogACT-Base", "never", "fsdp2")
    assert (config.logging.project, config.logging.entity, config.logging.wandb) == ("mine", "us", "online")
    assert config.devices == "auto"
    assert (config.precision, config.activation_checkpointing, config.seed) == ("bf16", True, 42)
    assert configured(FINE_TUNE).devices == 8, "without torchrun the processes are started here"


def test_the_line_from_openvla() -> None:
    line = FINE_TUNE.replace(
        "CogACT/CogACT-Base", "openvla-7b-prismatic/checkpoints/step-295000-epoch-40-loss=0.2200.pt"
    )
    line = line.replace("bridge", "oxe_magic_soup_plus_minus")
    config = configured(line, 8)
    assert config.init.path.endswith("loss=0.2200.pt") and config.data.mix == "oxe_magic_soup_plus_minus"


def test_the_mock_fine_tuning_line() -> None:
    found = translate(shlex.split(CUSTOM), 4)
    config = load_run_config(found.words)
    assert (config.data.path, config.data.format, config.data.mock.episodes) == ("mock", "rlds", 64)
    assert (config.batch.per_device, config.batch.accumulation, config.optimizer.lr) == (4, 1, 1e-4)
    assert config.output == "runs/custom-finetune+n0+b4+x42" and config.resume == "never"
    assert not any("secret" in word for word in (*found.words, *found.notes))
    logged = "--vla.per_device_batch_size 1 --mock_data_num_trajs 32 --vla.max_steps 100 --mock_data True"
    again = configured(f"{CUSTOM} {logged} --vla.lr_scheduler_type linear-warmup+cosine-decay", 4)
    assert (again.batch.accumulation, again.data.mock.episodes, again.steps) == (4, 32, 100)
    assert (again.schedule.name, again.schedule.warmup_steps) == ("cosine", 5)
    own = configured(f"{CUSTOM} --data_root_dir /data --mock_data False", 4)
    assert (own.data.path, own.data.mix) == ("/data", "custom_finetuning")


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--vla.weight_decay 0.1", "optimizer.weight_decay", 0.1),
        ("--vla.max_grad_norm 2.0", "optimizer.clip_grad_norm", 2.0),
        ("--vla.max_steps 50 --vla.warmup_ratio 0.1", "schedule.warmup_steps", 5),
        ("--vla.lr_scheduler_type constant --vla.max_steps 9", "schedule.warmup_steps", 0),
        ("--vla.train_strategy fsdp-shard-grad-op", "engine", "zero2"),
        ("--vla.enable_gradient_checkpointing False", "activation_checkpointing", False),
        ("--vla.enable_mixed_precision_training False", "precision", "fp32"),
        ("--vla.freeze_vision_backbone True --vla.freeze_llm_backbone True", "freeze", ("vision", "llm")),
        ("--use_ema True", "ema.decay", 0.9999),
        ("--load_all_data_for_training True", "data.validation_fraction", 0),
        ("--load_all_data_for_training False", "data.validation_fraction", 0.05),
        ("--seed 7", "seed", 7),
        ("--run_root_dir /r --run_id_note x", "output", "/r/custom-finetune+n0+b4+x42--x"),
        ("--trackers jsonl --wandb_project p", "logging.wandb", "off"),
        ("--vla.shuffle_buffer_size 100000 --action_dim 7", "seed", 42),
        ("--vla.max_steps 40", "schedule.warmup_steps", 2),
        ("--vla.max_steps 40 --vla.warmup_ratio 0", "schedule.warmup_steps", 0),
        ("--vla.max_steps 40 --vla.warmup_ratio 1", "schedule.warmup_steps", 40),
        ("--vla.lr_scheduler_type constant --vla.warmup_ratio 0", "schedule.name", "constant"),
        ("--image_aug False", "data.augmentation", "none"),
        ("--image_aug True", "data.augmentation", "cogact"),
        ("--trackers [jsonl,wandb] --wandb_project p", "logging.wandb", "online"),
        ("batch.per_device=2 --seed=3", "batch.per_device", 2),
    ],
)
def test_every_other_flag(flags: str, key: str, value: object) -> None:
    got = configured(f"{CUSTOM} {flags}", 4)
    for part in key.split("."):
        got = getattr(got, part)
    assert got == value


def test_a_run_goes_on_from_a_step() -> None:
    line = CUSTOM.replace("--is_resume false", "--is_resume True --resume_step 40 --run_id a")
    assert configured(line, 4).resume == "runs/a/checkpoints/step_00000040"
    assert configured(CUSTOM.replace("--is_resume false", ""), 4).resume == "auto"


def test_pictures_are_augmented_where_the_line_says_so() -> None:
    """The published default is off, whatever a recipe has."""
    config = configured(FINE_TUNE.replace("--image_aug True", ""), 8)
    assert config.data.augmentation == "none" and config.output == "/runs/first"


def test_what_is_not_read_is_said() -> None:
    notes = "\n".join(
        translate(
            shlex.split(f"{CUSTOM} --mock_data True --data_root_dir /data --wandb_project p --trackers jsonl"), 4
        ).notes
    )
    for words in ("--data_root_dir: not read, the demonstrations are mock", "--wandb_project: not used",
                  "--load_all_data_for_training True trains on all", "--hf_token: not read"):  # fmt: skip
        assert words in notes
    resumed = CUSTOM.replace("--is_resume false", "--resume_step 3 --resume_epoch 1")
    assert "--resume_epoch: a checkpoint knows" in "\n".join(translate(shlex.split(resumed), 4).notes)


@pytest.mark.parametrize(
    "line",
    [
        CUSTOM.replace("hf_{secret}", ""),
        CUSTOM.replace("--hf_token hf_{secret}", "") + " --hf_token",
        CUSTOM.replace("--hf_token hf_{secret}", "--hf_token="),
    ],
)
def test_the_documents_line_where_the_token_is_not_set(line: str) -> None:
    """``--hf_token $HF_TOKEN`` then is a flag alone."""
    config = configured(f"{line} seed=7", 4)
    assert (config.resume, config.init.path, config.seed) == ("never", "CogACT/CogACT-Base", 7)


def test_every_flag_has_its_row_in_the_documentation() -> None:
    page = (ROOT / "docs/cogact.md").read_text()
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `--")]
    told = {flag for row in table for flag in re.findall(r"`(?:--)?([a-z_.]+)", row)}
    assert {flag for flag in FLAGS if flag not in told and flag.removeprefix("vla") not in told} == set()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--vla.expected_world_size 8", "is 8, torchrun started 4"),
        ("--vla.global_batch_size 17", "17 is no multiple of --vla.per_device_batch_size 4 times 4"),
        ("--vla.epochs 30", "Give --vla.max_steps"),
        ("--vla.warmup_ratio 0.1", "give --vla.max_steps as well"),
        ("--vla.lr_scheduler_type cosine", "linear-warmup"),
        ("--vla.unfreeze_last_llm_layer True", "parts are frozen as a whole"),
        ("--vla.reduce_in_full_precision False", "summed in fp32"),
        ("--vla.base_vlm siglip-224px+7b", "siglip-224px.7b is not offered"),
        ("--past_action_window_size 1", "no past actions"),
        ("--vla.train_strategy ddp", "Unknown vla.train_strategy"),
        ("--save_intervall 5", "Unknown flag --save_intervall. Did you mean 'save_interval'"),
        ("--image_aug maybe", "expected True or False"),
        ("--mock_data_num_trajs none", "expected a whole number"),
        ("--vla.learning_rate fast", "expected a number"),
        ("--seed", "--seed has no value"),
        ("--seed --image_aug True", "--seed has no value"),
        ("--pretrained_checkpoint=", "--pretrained_checkpoint has no value"),
        ("--vla.data_mix=", "--vla.data_mix has no value"),
        ("--vla.type=", "--vla.type has no value"),
        ("--run_root_dir=", "--run_root_dir has no value"),
        ("--vla.learning_rate nan", "'nan', expected a number, 0 or more"),
        ("--vla.max_steps 100 --vla.warmup_ratio -0.5", "'-0.5', expected a number, 0 or more"),
        ("--vla.max_steps 100 --vla.warmup_ratio nan", "'nan', expected a number, 0 or more"),
        ("--vla.max_steps 100 --vla.warmup_ratio 2", "'2', expected a share from 0 to 1"),
        (
            "--vla.max_steps 100 --vla.lr_scheduler_type constant --vla.warmup_ratio 0.1",
            "0.1 has no effect: .*no warm-up",
        ),
        ("--resume_step 5", "--resume_step has no effect with --is_resume False"),
        ("--resume_epoch 5", "--resume_epoch has no effect with --is_resume False"),
        ("--data_root_dir /data --mock_data_num_trajs 8", "8 has no effect: the data are those of --data_root_dir"),
        ("--trackers wandb", "--trackers wandb needs a project"),
        ("--wandb_entity us", "--wandb_entity us needs a project"),
        ("--trackers [jsonl,mlflow]", "Unknown tracker 'mlflow'"),
        ("--seed 1 --seed 2", "--seed is given twice"),
        ("--seed=1 --seed=1", "--seed is given twice"),
        ("loose", "Cannot read 'loose'"),
    ],
)
def test_what_has_no_counterpart_is_told(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        translate(shlex.split(f"{CUSTOM} {flags}"), 4)


def test_a_start_and_data_are_needed() -> None:
    with pytest.raises(UserError, match=r"--pretrained_checkpoint is missing.*openvla-7b-prismatic"):
        translate(["--vla.type", "custom-finetune"], 4)
    with pytest.raises(UserError, match="--data_root_dir is missing"):
        translate(["--pretrained_checkpoint", "cogact-base"], 16)
    with pytest.raises(UserError, match=r"Unknown vla\.type 'custom'"):
        translate(["--vla.type", "custom"], 4)


def test_the_published_summary() -> None:
    facts = SetupFacts(
        engine="fsdp2", processes=4, per_device=1, accumulation=4, recompute=True, precision="bf16",
        optimizer="adamw", lr=1e-4, weight_decay=0.01, schedule="cosine", warmup_steps=5, steps=100, samples=32,
    )  # fmt: skip
    document = """
      |-> Global (Effective) Batch Size = 16
      |-> Per-Device Batch Size = 1
      |-> Distributed World Size = 4
      |-> Gradient Accumulation Steps = 4
      |-> LLM Backbone FSDP Gradient Checkpointing = True
      |-> Use FSDP Mixed Precision = True
              |-> Parameter Precision = torch.bfloat16
              |-> Reduction Precision = torch.float32
              |-> Buffer Precision = torch.float32
      |-> Default AdamW LR = 0.0001
      |-> AdamW Weight Decay = 0.01
      |-> LR Scheduler Type = linear-warmup+cosine-decay
      |-> LR Scheduler Warmup Steps (Ratio) = 5 (0.05)
      |-> Dataset Size = 32 Examples
      |-> Max Steps = 100
    """
    lines = setup_lines(facts)
    assert lines[0] == "FSDP Full-Shard Strategy =>> Finalized Training Setup:"
    assert [line.strip() for line in lines[1:]] == [line.strip() for line in document.strip().splitlines()]
    halves = setup_lines(dataclasses.replace(facts, engine="zero2"))
    assert halves[0] == "ZeRO Shard-Grad-Op Strategy =>> Finalized Training Setup:" and halves[1:] == lines[1:]


def test_the_script_trains_from_the_documents_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("cogact_train", ROOT / "examples/cogact/scripts/train.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    flags = f"""--vla.type custom-finetune --run_root_dir {tmp_path} --run_id mock --is_resume false
      --mock_data_num_trajs 4 --vla.expected_world_size 1 --vla.per_device_batch_size 2 --vla.global_batch_size 4
      --vla.max_steps 2
      --vla.lr_scheduler_type linear-warmup+cosine-decay --vla.warmup_ratio 0.5 --repeated_diffusion_steps 2
      --hf_token hf_secret --action_model_type DiT-mock"""
    small = """model.size=mock model.tokenizer=stand-in init.path=null model.image_size=28 data.image_size=[28,28]
      data.mock.image_size=[28,28] data.mock.min_length=8 data.mock.max_length=9 data.workers=0 device=cpu"""
    assert script.run(shlex.split(f"{flags} {small}")) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for words in ("Finalized Training Setup", "Global (Effective) Batch Size = 4", "Gradient Accumulation Steps = 2",
                  "Warmup Steps (Ratio) = 1 (0.5)", "Max Steps = 2", "Stand-in tokenizer", "finished"):  # fmt: skip
        assert words in said
    assert "hf_secret" not in said and (tmp_path / "mock/checkpoints/step_00000002").is_dir()
    assert script.run(["--vla.type", "none"]) == 2
    assert "Unknown vla.type 'none'" in capsys.readouterr().err
    assert script.run(["--help"]) == 0
    said = capsys.readouterr().out
    assert "docs/cogact.md" in said and all(f"--{flag} " in said for flag in FLAGS)
    ran: list[str] = []
    monkeypatch.setattr(script, "main", lambda words: ran.extend(words) or 0)
    line = f"{CUSTOM} --run_root_dir '/my runs' --vla.expected_world_size 4"
    assert script.run(shlex.split(line)) == 0
    printed = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("vla-ft train"))
    assert shlex.split(printed) == ["vla-ft", *ran] and "output=/my runs/custom-finetune+n0+b4+x42" in ran
    assert launched_processes({"WORLD_SIZE": "4"}) == 4 and launched_processes({}) is None
