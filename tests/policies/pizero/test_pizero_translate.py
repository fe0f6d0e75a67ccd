"""open-pi-zero's training files as recipes: the documented vocabulary, arithmetic without Python, nothing ignored."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import ListConfig, OmegaConf
from published_training_files import write_published

from vla_ft.config import load_run_config, read_recipe, run_config_from_dict
from vla_ft.errors import UserError
from vla_ft.inspection.translation import write_translation
from vla_ft.policies.pizero.arithmetic import arithmetic
from vla_ft.policies.pizero.document import Document
from vla_ft.policies.pizero.translate import recipe_of, translate
from vla_ft.policies.pizero.vocabulary import KEYS, SameAs, Setting, Without
from vla_ft.policies.translation import Translation

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


REFUSED = {
    "train_vml=False": r"no known training file .* has: train_vml\. Did you mean 'train_vlm'",
    "names=3": r"has: names\. Did you mean 'name'",
    "debugg=1": r"has: debugg\. Did you mean 'debug'",
    "device_batch_size=4": r"has: device_batch_size\. Did you mean 'per_device_batch_size'",
    "data.train=random": r"no known training file of open-pi-zero has: data\.train\.",
    "quantize=True": "4-bit weights are not offered",
    "use_swa=True": "an equal average is not offered",
    "ema_freq=2": "follows every update",
    "cond_steps=2": "π0 sees one step",
    "n_nodes=2": "say all their cards=N",
    "device=tpu": "expected cuda, cpu",
    "use_lm_head=True": "speaks no words",
    "data.train.action_horizon=8": "expected 4 as horizon_steps",
    "data.train.load_proprio=False": "π0 reads proprioception",
    "data.train.dataset_mix=brige": r"Unknown data\.train\.dataset_mix 'brige'\. Did you mean 'bridge'",
    "data.train.split=test": "expected train, or a share",
    "data.train.split=train[:0%]": "expected train, or a share",
    "data.val.split=val": "expected null",
    "max_image_text_tokens=256": "expected 276 as max_seq_len",
    "tokenizer_padding=longest": "the mask needs one length",
    "mixture.proprio.hidden_size=512": "expected 1024 as mixture.action.hidden_size",
    "mixture.vlm.use_lora=True": "expected False as lora",
    "mixture.vlm.cache=False": "what the experts read",
    "vision.use_lora=True": "expected False as lora",
    "vision.config.attention_dropout=0.1": "SigLIP knows no other",
    "vision.config.num_image_tokens=64": "expected 256",
    "vision_projector.config.vision_config.projection_dim=1024": "expected 2048 as mixture.vlm.hidden_size",
    "joint.config.rms_norm_eps=1e-5": "Gemma knows no other",
    "joint.config.action_expert_adaptive_mode=adaLN": "expected null as action_expert_adaptive_mode",
    "joint.config.mixture.proprio.hidden_size=512": "expected 1024 as mixture.proprio.hidden_size",
    "action_expert_adaptive_mode=adaln": "expected adaLN, adaLN-Zero or null",
    "flow_sampling=betta": "expected beta, uniform",
    "global_batch_size=1000": "no multiple of per_device_batch_size=16 times 8",
    "global_batch_size=null": "global_batch_size is null .* expected a whole number",
    "per_device_batch_size=0": "per_device_batch_size is 0 .* expected more than 0",
    "seed=null": "seed is null .* expected a whole number",
    "eval_size=null": "eval_size is null .* expected a whole number",
    "eval_thresholds=0.1": "expected a list of numbers",
    "eval_thresholds=[a]": "expected numbers above 0",
    "log_freq=0": "log_freq is 0 .* expected more than 0",
    "save_model_freq=1.5": r"save_model_freq is 1\.5 .* expected a whole number",
    "max_grad_norm=0": "expected more than 0 or null",
    "action_lr=fast": "action_lr is 'fast' .* expected a number",
    "action_lr=0": "action_lr is 0.* expected more than 0",
    "action_lr=1e-9": r"action_lr=1e-09 is less than action_lr_scheduler\.min_lr=1e-08\. Lower",
    "vlm_lr=1e-9": r"vlm_lr=1e-09 is less than vlm_lr_scheduler\.min_lr",
    "lora_dropout=1": "expected less than 1",
    "wandb=p": "give wandb its project",
}
"""A word over the published Bridge file's values -> what is said of it."""
REFUSED_FILES = {
    "max_seq_len=200": "expected 256 of the picture and 3 or more of text",
    "n_updates=${eval:'__import__(\"os\").getpid()'}": "no arithmetic",
    "log_dir=${oc.env:NOBODY_SETS_THIS}": r"needs the environment variable NOBODY_SETS_THIS: export NOBODY_SETS_THIS=",
    "log_dir=${nowhere}": "cannot be resolved: .*nowhere",
}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The published Bridge file's values by key, read once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, name.lower())
        return Document.read(write_published("bridge", tmp_path_factory.mktemp("published"))).said


def with_word(values: dict[str, Any], word: str) -> Translation:
    """The recipe for values and hydra's word over them."""
    key = word.partition("=")[0]
    value = OmegaConf.select(OmegaConf.from_dotlist([word]), key)
    value = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    return recipe_of(Document("bridge.yaml", {**values, key: value}), 8)


@pytest.mark.parametrize("word", REFUSED)
def test_what_has_no_counterpart_is_refused(word: str, bridge: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=REFUSED[word]):
        with_word(bridge, word)


@pytest.mark.parametrize(("word", "message"), REFUSED_FILES.items())
def test_what_cannot_be_resolved_is_refused(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        translate(str(TRAIN / "bridge.yaml"), [word], 8)


def test_no_other_value_of_a_fixed_key_is_passed_over(bridge: dict[str, Any]) -> None:
    for key, known in KEYS.items():
        if not isinstance(known, Setting | Without):
            with pytest.raises(UserError, match=re.escape(key)):
                with_word(bridge, f"{key}=7777")


def test_every_setting_is_read(bridge: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is in the table and that nobody asks for would be dropped in silence."""
    asked: set[str] = set()
    read, held = Document.__getitem__, Document.__contains__
    monkeypatch.setattr(Document, "__getitem__", lambda self, name: asked.add(name) or read(self, name))
    monkeypatch.setattr(Document, "__contains__", lambda self, name: asked.add(name) or held(self, name))
    left = {k: v for k, v in bridge.items() if k != "n_updates" and not isinstance(KEYS[k], SameAs)}
    with_word(left, "lora=True")
    assert {key for key, known in KEYS.items() if isinstance(known, Setting)} <= asked


@pytest.mark.parametrize(
    ("word", "section", "key"),
    [
        ("final_action_clip_value=null", "model", "action_clip"),
        ("max_grad_norm=null", "optimizer", "clip_grad_norm"),
        ("action_expert_adaptive_mode=null", "model", "adaptive"),
    ],
)
def test_null_is_off_and_not_a_default(word: str, section: str, key: str) -> None:
    assert translated("bridge", word)[section][key] is None


@pytest.mark.parametrize("word", ["wandb=null", "wandb.project=null"])
def test_null_turns_tracking_off(word: str, tmp_path: Path) -> None:
    path = write_published("bridge", tmp_path)
    assert translate(str(path), [word], 8).values["logging"] == {"every": 2}


@pytest.mark.parametrize(
    ("word", "section", "key", "value"),
    [
        ("n_updates=1e4", "steps", None, 10_000),
        ("n_epochs=1.5", "steps", None, 2270),
        ("eval_freq=1000.0", "validation", "every", 125),
        ("action_lr=1", "optimizer", "lr", 1.0),
        ("device=cpu", "device", None, "cpu"),
        ("wandb.entity=q", "logging", "entity", "q"),
        ("data.train.split=train[:80%]", "data", "validation_fraction", 0.2),
        ("seed=7.0", "seed", None, 7),
    ],
)
def test_numbers_as_people_write_them(
    word: str, section: str, key: str | None, value: Any, bridge: dict[str, Any]
) -> None:
    values = {name: said for name, said in bridge.items() if (name, word) != ("n_updates", "n_epochs=1.5")}
    found = with_word(values, word).values[section]
    found = found if key is None else found[key]
    assert found == value and type(found) is type(value)


def test_held_out_data_are_what_training_leaves(tmp_path: Path) -> None:
    path = str(write_published("fractal", tmp_path))
    words = ["data.train.split=train[:80%]", "data.val.split=train[80%:]"]
    translation = translate(path, words, 8)
    assert translation.values["data"]["validation_fraction"] == 0.2
    assert "takes the last ones" in translation.remarks["data.validation_fraction"]
    with pytest.raises(UserError, match=r"expected null or train\[80%:\], what training leaves"):
        translate(path, words[:1], 8)


def test_the_written_recipe_says_what_is_not_the_originals(tmp_path: Path) -> None:
    output = tmp_path / "recipe.yaml"
    path = write_published("bridge", tmp_path)
    write_translation("open-pi-zero", [str(path), f"output={output}", "cards=8", "use_ema=True", "ema_start=0"])
    text = " ".join(output.read_text().replace("#", " ").split())
    assert "evaluates on the dataset's own val split validation_fraction: 0.05" in text
    assert "save_model_start=7565 is dropped" in text and "never start at 0" in text
    assert "time_period: 10000.0 not in the file: the code" in text


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
