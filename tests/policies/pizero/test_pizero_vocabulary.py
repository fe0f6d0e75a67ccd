"""Every key of open-pi-zero's files: none is dropped in silence, null is off, mistakes are told in its own words."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import ListConfig, OmegaConf
from published_training_files import write_published

from vla_ft.config import run_config_from_dict
from vla_ft.errors import UserError
from vla_ft.inspection.translation import write_translation
from vla_ft.policies.pizero.arithmetic import arithmetic
from vla_ft.policies.pizero.document import Document
from vla_ft.policies.pizero.translate import recipe_of, translate
from vla_ft.policies.pizero.vocabulary import KEYS, SameAs, Setting, Without
from vla_ft.policies.translation import Translation

TRAIN = Path(__file__).parents[3] / "examples" / "open_pi_zero" / "config" / "train"
FOLDERS = ("VLA_LOG_DIR", "VLA_DATA_DIR", "TRANSFORMERS_CACHE", "VLA_WANDB_ENTITY")


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


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
    "n_updates=.inf": "expected a finite number",
    "pretrained_model_path=": "expected text",
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


def test_no_value_ends_in_a_traceback(bridge: dict[str, Any]) -> None:
    for key, known in KEYS.items():
        if isinstance(known, Setting):
            for value in (None, 0, -1, 1.5, 1e30, float("inf"), "", "x", [], True):
                with contextlib.suppress(UserError):
                    recipe_of(Document("bridge.yaml", {**bridge, key: value}), 8)


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
def test_null_is_off_and_not_a_default(word: str, section: str, key: str, bridge: dict[str, Any]) -> None:
    values = with_word(bridge, word).values
    run_config_from_dict({"recipe": "bridge", **values})
    assert values[section][key] is None


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
