"""open-pi-zero's training files as recipes: the documented vocabulary, arithmetic without Python, nothing ignored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vla_ft.config import load_run_config, read_recipe, run_config_from_dict
from vla_ft.errors import UserError
from vla_ft.inspection.translation import write_translation
from vla_ft.policies.pizero.translate import translate
from vla_ft.policies.pizero.vocabulary import arithmetic

EXAMPLES = Path(__file__).parents[3] / "examples" / "open_pi_zero"
TRAIN = EXAMPLES / "config" / "train"


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VLA_LOG_DIR", "VLA_DATA_DIR", "TRANSFORMERS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def translated(name: str, *words: str, cards: int = 8) -> dict[str, Any]:
    values = translate(str(TRAIN / f"{name}.yaml"), words, cards)
    run_config_from_dict({"recipe": name, **values})
    return values


@pytest.mark.parametrize("name", ["bridge", "fractal"])
def test_published_files_are_the_published_recipes(name: str, tmp_path: Path) -> None:
    """Where they meet: the recipe names weights instead of folders, and keeps float32 weights."""
    values, recipe = translated(name), read_recipe(f"pizero-{name}")
    for key in ("steps", "batch", "validation", "checkpoint", "logging"):
        assert values[key] == recipe[key], key
    for key, value in recipe["model"].items():
        assert key == "tokenizer" or values["model"][key] == value
    for key in ("mix", "cameras", "image_size", "augmentation", "steps_per_episode"):
        assert values["data"][key] == recipe["data"][key]
    assert values["data"]["path"] == str(tmp_path / "vla_data_dir" / "resize_224")
    for part in ("action", "vlm"):
        group = values["optimizer"]["groups"][part]
        assert (group["lr"], group["weight_decay"]) == (5e-5, 0.0)
        assert group["schedule"] == pytest.approx(recipe["schedule"])
    defaults, given = run_config_from_dict({"recipe": "a", **values}).model, values["model"]
    assert all(getattr(defaults, key) == value for key, value in given.items())


def test_the_guides_test_of_a_pipeline() -> None:
    values = translated("finetune", "global_batch_size=16", "per_device_batch_size=8", cards=1)
    mock = {"content": "noise", "action_dim": 7, "proprio_dim": 8, "image_size": [224, 224], "cameras": ["primary"]}
    assert values["data"]["path"] == "mock" and mock.items() <= values["data"]["mock"].items()
    assert values["freeze"] == ["vlm", "fixed"] and "init" not in values
    assert values["model"]["tokenizer"] == "stand-in"
    assert values["optimizer"]["groups"].keys() == {"action"}
    assert values["batch"] == {"per_device": 8, "accumulation": 2}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["use_bf16=False"], {"precision": "bf16"}),
        (["use_bf16=False", "use_amp=False"], {"precision": "fp32", "freeze": []}),
        (["lora=True", "lora_r=16"], {"lora": {"vlm": {"rank": 16, "dropout": 0.0}}, "precision": "bf16"}),
        (["use_ema=True", "ema_start=0"], {"ema": {"decay": 0.99, "start_step": 0}}),
        (["resume_checkpoint_path=step3.pt"], {"init": {"path": "step3.pt", "layout": "open-pi-zero"}}),
        (["n_updates=40", "save_model_freq=16"], {"steps": 40, "checkpoint": {"every": 16, "keep_last": 3}}),
        (["wandb.project=pi"], {"logging": {"every": 2, "wandb": "online", "project": "pi"}}),
    ],
)
def test_switches(words: list[str], expected: dict[str, Any]) -> None:
    values = translated("bridge", *words)
    assert {key: values[key] for key in expected} == expected


def test_model_keys() -> None:
    words = ("action_expert_adaptive_mode=adaLN", "time_max_period=10000", "mixture.vlm.hidden_size=64", "flow_alpha=2")
    model = translated("bridge", *words, "action_expert_rope_theta=10000", "max_seq_len=300")["model"]
    assert model["adaptive"] == "adaLN" and model["vlm_width"] == 64 and model["flow_alpha"] == 2.0
    assert (model["time_period"], model["expert_rope_theta"], model["text_tokens"]) == (10000.0, 10000.0, 44)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_vml=False"], r"keys that open-pi-zero does not: train_vml\. Did you mean 'train_vlm'"),
        (["quantize=True"], "4-bit weights are not offered"),
        (["use_swa=True"], "an equal average is not offered"),
        (["cond_steps=2"], "π0 sees one step"),
        (["data.train.action_horizon=8"], "must be horizon_steps, 4"),
        (["max_image_text_tokens=256"], "must be max_seq_len, 276"),
        (["global_batch_size=1000"], "no multiple of per_device_batch_size=16 times 8"),
        (["action_lr=fast"], "action_lr .* is 'fast', expected float"),
        (["data.train.split=test"], "expected one of train"),
        (["n_updates=${eval:'__import__(\"os\").getpid()'}"], "no arithmetic"),
        (["log_dir=${oc.env:NOBODY_SETS_THIS}"], "NOBODY_SETS_THIS"),
    ],
)
def test_what_has_no_counterpart_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translated("bridge", *words)


def test_arithmetic() -> None:
    assert arithmetic(" 15 * (1550000 // 1024) ") == 22695
    assert arithmetic("int(-7.9 + 2 % 3) / 2") == -2.5
    for text in (
        "__import__('os')",
        "a + 1",
        "(1).real",
        "1 if 2 else 3",
        "'a' * 3",
        "2 ** 9",
        "1 / 0",
        "True",
        "int(x=1)",
    ):
        with pytest.raises(UserError, match="no arithmetic"):
            arithmetic(text)


def test_a_recipe_is_written_once_and_reads_back(tmp_path: Path) -> None:
    output = tmp_path / "recipe.yaml"
    words = [str(TRAIN / "fractal.yaml"), f"output={output}", "cards=8", "n_updates=7"]
    write_translation("open-pi-zero", words)
    config = load_run_config([f"recipe={output}"])
    assert (config.steps, config.data.mix, config.model.proprio_dim) == (7, "fractal", 8)
    assert config.optimizer.groups["vlm"].schedule is not None
    with pytest.raises(UserError, match="exists already"):
        write_translation("open-pi-zero", words)
    write_translation("open-pi-zero", [*words, "overwrite=true"])
    with pytest.raises(UserError, match="Name the file first"):
        write_translation("open-pi-zero", ["output=a.yaml"])
    with pytest.raises(UserError, match="There is no file"):
        write_translation("open-pi-zero", ["nowhere.yaml"])
    assert [path.name for path in tmp_path.glob("*recipe*")] == ["recipe.yaml"]


TINY = (
    "vision.config.image_size=28", "vision.config.hidden_size=16", "vision.config.intermediate_size=16",
    "vision.config.num_hidden_layers=1", "vision.config.num_attention_heads=2", "max_seq_len=12",
    "mixture.vlm.hidden_size=16", "mixture.vlm.intermediate_size=16", "mixture.action.hidden_size=16",
    "mixture.action.intermediate_size=16", "joint.config.num_hidden_layers=2", "joint.config.num_attention_heads=2",
    "joint.config.head_dim=8", "vocab_size=64", "image_token_index=63",
)  # fmt: skip


@pytest.mark.nightly
def test_the_documented_script_goes_on_after_its_checkpoints(tmp_path: Path) -> None:
    """The original ends at its first checkpoint, after 16 updates (spec of open-pi-zero, trap 2)."""
    script = EXAMPLES / "slurm" / "test_training_single_gpu_no_slurm.sh"
    words = [*TINY, "use_torch_compile=False", "n_updates=18", "use_bf16=False", "use_amp=False"]
    words += ["global_batch_size=4", "per_device_batch_size=2"]
    variables = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(EXAMPLES.parents[1]), "OMP_NUM_THREADS": "1"}
    variables |= {"VLA_LOG_DIR": str(tmp_path / "logs"), "VLA_FT_DEVICE": "cpu"}
    done = subprocess.run(["bash", str(script), *words], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Number of trained parameters (Action): 0.000B" in done.stdout and "(VLM)" not in done.stdout
    assert (tmp_path / "logs/test/checkpoints/step_00000016").is_dir() and "finished step 18" in done.stdout
