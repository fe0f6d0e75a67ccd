"""Calls written for the published CogACT: taken as they are, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cogact_examples import HORIZON, model, publish, small_config
from PIL import Image

from vla_ft.errors import UserError
from vla_ft.policies.cogact.checkpoint import load_weights
from vla_ft.policies.cogact.inference import CogActVla, load_vla

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
TASK = "move sponge near apple"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "run"
    publish(folder, model())
    return folder


@pytest.fixture(scope="module")
def vla(run: Path) -> CogActVla:
    return load_vla(run, tokenizer="stand-in")


def noise(count: int = 1) -> torch.Tensor:
    return torch.randn(count, HORIZON, 7, generator=torch.Generator().manual_seed(0))


def test_the_call_of_the_published_simpler_class(run: Path, vla: CogActVla) -> None:
    """``sim_cogact/cogact_policy.py``, argument by argument."""
    again = load_vla(
        run, load_for_training=False, action_model_type="DiT-mock", future_action_window_size=HORIZON - 1,
        action_dim=7, tokenizer="stand-in",
    )  # fmt: skip
    said = {"unnorm_key": "arm", "cfg_scale": 1.5, "use_ddim": True, "num_ddim_steps": 1, "noise": noise()}
    actions, _ = again.predict_action(image=PICTURE, instruction=TASK, do_sample=False, **said)
    np.testing.assert_array_equal(actions, vla.predict_action(PICTURE, TASK, **said)[0])


def test_the_call_of_the_published_training_script(run: Path) -> None:
    """``hf_token`` second, as published, and in no word of what fails."""
    settings: dict[str, Any] = {"past_action_window_size": 0, "use_ema": False, "tokenizer": "stand-in"}
    assert load_vla(run, "hf_secret", None, True, action_dim=7, **settings).training
    with pytest.raises(UserError) as refused:
        load_vla(run, "hf_secret", use_emma=False)
    assert "Did you mean 'use_ema'" in str(refused.value) and "secret" not in str(refused.value)


def test_a_batch_by_the_published_names(vla: CogActVla) -> None:
    options: dict[str, Any] = {"num_ddim_steps": 1, "noise": noise(2)}
    named, _ = vla.predict_action_batch(image=[PICTURE] * 2, instruction=[TASK] * 2, do_sample=False, **options)
    np.testing.assert_array_equal(named, vla.predict_action_batch([PICTURE] * 2, [TASK] * 2, **options)[0])
    for image, instruction in ((PICTURE, [TASK]), ([PICTURE], TASK)):
        with pytest.raises(UserError, match="For one of each take predict_action"):
            vla.predict_action_batch(image, instruction)  # type: ignore[arg-type]


def test_no_number_of_steps_takes_all(vla: CogActVla) -> None:
    """As published."""
    got = []
    for options in ({"num_ddim_steps": None}, {"use_ddim": False}, {}):
        torch.manual_seed(0)
        got.append(vla.predict_action(PICTURE, TASK, noise=noise(), **options)[1])
    np.testing.assert_array_equal(got[0], got[1])
    assert not np.array_equal(got[0], got[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_dim": 8}, "moves 7 dimensions, action_dim is 8"),
        ({"action_model_type": "DiT-Base"}, "Unknown action_model_type 'DiT-Base'. Did you mean 'DiT-B'"),
        ({"past_action_window_size": 2}, "past_action_window_size=2 is not offered"),
        ({"use_ema": True}, "use_ema=True is not offered"),
        ({"cache_dir": "cache"}, "VLA_FT_WEIGHTS"),
        ({"image_size": 224}, "image_size is read off the weights"),
        ({"repeated_diffusion_step": 4}, "Did you mean 'repeated_diffusion_steps'"),
        ({"num_ddim_steps": "ten"}, "num_ddim_steps is 'ten'"),
        ({"hf_token": False}, "second argument is hf_token, as published, and is False"),
    ],
)
def test_load_vla_refuses_in_words(run: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_vla(run, **{"tokenizer": "stand-in", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"do_sample": True}, "do_sample=True is not offered: no words are generated"),
        ({"do_samples": False}, "Unknown argument of predict_action 'do_samples'. Did you mean 'do_sample'"),
        ({"num_ddim_steps": 0}, "DDIM cannot take 0 of 100"),
        ({"num_ddim_steps": -1}, "DDIM cannot take -1 of 100"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan"),
        ({"cfg_scale": float("inf")}, "cfg_scale is inf"),
        ({"instruction": None}, "An instruction is None, expected text"),
        ({"noise": torch.zeros(1, HORIZON, 6)}, r"shape \(1, 4, 6\); these actions start from \(1, 4, 7\)"),
    ],
)
def test_predict_action_refuses_in_words(vla: CogActVla, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vla.predict_action(**{"image": PICTURE, "instruction": TASK, **arguments})


def test_a_configuration_of_no_steps_is_refused() -> None:
    with pytest.raises(UserError, match="num_ddim_steps is 0"):
        small_config(num_ddim_steps=0)


def test_the_folder_of_the_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (run / "checkpoints", run / "checkpoints/CogACT-Tiny.pt"):
        assert load_vla(path, tokenizer="stand-in").config.horizon == HORIZON
    monkeypatch.chdir(run)
    assert load_vla("checkpoints", tokenizer="stand-in").action_dim == 7


def test_a_run_of_this_tool_is_told_how_to_come_there(tmp_path: Path) -> None:
    for step in (20, 40):
        (tmp_path / f"run/checkpoints/step_{step:08d}").mkdir(parents=True)
    (tmp_path / "run/checkpoints/latest").write_text("step_00000040\n")
    for path in (tmp_path / "run", tmp_path / "run/checkpoints"):
        words = f"vla-ft export format=cogact checkpoint={path} output=FOLDER"
        with pytest.raises(UserError, match=words) as refused:
            load_vla(path, tokenizer="stand-in")
        with pytest.raises(UserError, match=words):
            load_weights(model(), str(path))
        assert f"init.path={tmp_path / 'run/checkpoints/step_00000040'}" in str(refused.value)
