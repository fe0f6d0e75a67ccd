"""open-pi-zero's training files as recipes: the documented vocabulary, arithmetic without Python, nothing ignored."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from published_training_files import write_published

from vla_ft.config import load_run_config, read_recipe, run_config_from_dict
from vla_ft.errors import UserError
from vla_ft.inspection.translation import write_translation
from vla_ft.policies.pizero.checkpoint import check_constants
from vla_ft.policies.pizero.document import Document
from vla_ft.policies.pizero.translate import translate
from vla_ft.policies.pizero.vocabulary import KEYS

EXAMPLES = Path(__file__).parents[3] / "examples" / "open_pi_zero"
TRAIN = EXAMPLES / "config" / "train"
FOLDERS = ("VLA_LOG_DIR", "VLA_DATA_DIR", "TRANSFORMERS_CACHE", "VLA_WANDB_ENTITY")


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def translated(name: str, *words: str, cards: int = 8) -> dict[str, Any]:
    values = translate(str(TRAIN / f"{name}.yaml"), words, cards).values
    run_config_from_dict({"recipe": name, **values})
    return values


@pytest.mark.parametrize("name", ["bridge", "fractal"])
def test_the_examples_are_the_published_recipes(name: str, tmp_path: Path) -> None:
    """Where they meet: the recipe names weights instead of folders, and keeps float32 weights."""
    values, recipe = translated(name), read_recipe(f"pizero-{name}")
    for key in ("steps", "batch", "validation", "checkpoint", "logging"):
        assert values[key] == recipe[key], key
    for key, value in recipe["model"].items():
        assert key == "tokenizer" or values["model"][key] == value
    for key in ("mix", "cameras", "image_size", "augmentation", "steps_per_episode", "validation_fraction"):
        assert values["data"][key] == recipe["data"][key]
    assert values["data"]["path"] == str(tmp_path / "vla_data_dir" / "resize_224")
    for part in ("action", "vlm"):
        group = values["optimizer"]["groups"][part]
        assert (group["lr"], group["weight_decay"]) == (5e-5, 0.0)
        assert group["schedule"] == pytest.approx(recipe["schedule"])
    defaults, given = run_config_from_dict({"recipe": "a", **values}).model, values["model"]
    assert all(getattr(defaults, key) == value for key, value in given.items())


@pytest.mark.parametrize("name", ["bridge", "fractal"])
def test_the_published_files_with_all_their_keys(name: str, tmp_path: Path) -> None:
    """At 5e04eca one base served all rotary positions, 10000; later files, which the examples are of, have 100."""
    path = write_published(name, tmp_path)
    values, ours = translate(str(path), (), 8).values, translated(name)
    run_config_from_dict({"recipe": name, **values})
    bases = {"vlm_rope_theta": 10000.0, "expert_rope_theta": 10000.0, "time_period": 10000.0}
    assert values.pop("model") == ours.pop("model") | bases
    entity = str(tmp_path / "vla_wandb_entity")
    logging = values.pop("logging")
    assert re.fullmatch(rf"\d\d-\d\d-\d\d_{name}_train.*_tp4_beta", logging.pop("name"))
    assert logging == ours.pop("logging") | {"wandb": "online", "project": "open-pi-zero", "entity": entity}
    assert re.fullmatch(rf".*/train/{name}_train.*_tp4_beta/\d{{4}}-\d\d-\d\d_\d\d-\d\d_42", values.pop("output"))
    assert values.pop("device") == "cuda" and ours.pop("output")
    assert values == ours
    assert values["data"]["validation_fraction"] == 0.05


def test_the_published_files_name_no_key_that_is_not_in_the_table(tmp_path: Path) -> None:
    """And the table none that neither these files nor later ones have."""
    seen = {key for name in _PUBLISHED for key in Document.read(write_published(name, tmp_path)).said}
    later = {"action_expert_rope_theta", "time_max_period", "use_lm_head", "flow_alpha", "flow_beta", "flow_sig_min"}
    later |= {f"{group}mixture.{part}.rope_theta" for group in ("", "joint.config.") for part in _MIXTURES} | {"wandb"}
    assert KEYS.keys() - seen == later


_PUBLISHED, _MIXTURES = ("bridge", "fractal"), ("vlm", "proprio", "action")


def test_constants_that_no_tensor_shows(tmp_path: Path) -> None:
    published = str(write_published("bridge", tmp_path))
    told = translate(published, ["action_expert_rope_theta=100", "time_max_period=100"], 8).values["model"]
    assert (told["vlm_rope_theta"], told["expert_rope_theta"], told["time_period"]) == (10000.0, 100.0, 100.0)
    assert "model.time_period" in translate(published, (), 8).remarks
    with pytest.raises(UserError, match=r"does not say time_max_period, and no tensor shows it"):
        translate(published, ["action_expert_rope_theta=100"], 8)
    bare = tmp_path / "bare.yaml"
    bare.write_text("global_batch_size: 1024\n")
    with pytest.raises(UserError, match="does not say action_expert_rope_theta and time_max_period"):
        translate(str(bare), (), 8)
    for words, message in {
        ("mixture.action.rope_theta=50",): r"mixture.action.rope_theta .* is 50\.0, expected 100",
        ("mixture.proprio.rope_theta=50",): r"mixture.proprio.rope_theta .* is 50\.0, expected 100",
        ("mixture.vlm.rope_theta=50",): r"mixture.vlm.rope_theta .* is 50\.0, expected 10000 as joint.config",
    }.items():
        with pytest.raises(UserError, match=message):
            translate(published, ["action_expert_rope_theta=100", "time_max_period=100", *words], 8)


def test_the_guides_test_of_a_pipeline() -> None:
    values = translated("finetune", "global_batch_size=16", "per_device_batch_size=8", cards=1)
    mock = {"content": "noise", "action_dim": 7, "proprio_dim": 8, "image_size": [224, 224], "cameras": ["primary"]}
    assert values["data"]["path"] == "mock" and mock.items() <= values["data"]["mock"].items()
    assert values["freeze"] == ["vlm", "fixed"] and "init" not in values
    assert values["model"]["tokenizer"] == "stand-in"
    assert values["model"]["normalization"] == "none", "the guide's numbers are not bounded"
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


def test_no_training_file_vouches_for_the_constants_of_a_checkpoint() -> None:
    """The examples say 100, published checkpoints have 10000: one under another name is refused until told."""
    values = translated("bridge", "resume_checkpoint_path=/w/bridge.pt")
    config = run_config_from_dict({"recipe": "bridge", **values}).model
    with pytest.raises(UserError, match=r"expert_rope_theta 100, .*say model\.constants_confirmed=true"):
        check_constants(config, {}, values["init"]["path"], values["init"]["layout"])
    told = dataclasses.replace(config, constants_confirmed=True)
    assert "taken from the configuration" in check_constants(told, {}, values["init"]["path"], "open-pi-zero")


def test_adapters_in_what_is_frozen_are_refused() -> None:
    with pytest.raises(UserError, match=r"lora=True with train_vlm=False"):
        translated("bridge", "lora=True", "train_vlm=False")
    assert "lora" not in translated("bridge", "train_vlm=False")


def test_model_keys() -> None:
    words = ("action_expert_adaptive_mode=adaLN", "time_max_period=10000", "mixture.vlm.hidden_size=64", "flow_alpha=2")
    model = translated("bridge", *words, "action_expert_rope_theta=10000", "max_seq_len=300")["model"]
    assert model["adaptive"] == "adaLN" and model["vlm_width"] == 64 and model["flow_alpha"] == 2.0
    assert (model["time_period"], model["expert_rope_theta"], model["text_tokens"]) == (10000.0, 10000.0, 44)


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
