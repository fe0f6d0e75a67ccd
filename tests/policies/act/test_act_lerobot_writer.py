"""What LeRobot's form of ACT cannot express is refused in words; what it can, is written as it reads it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from narrow_trunk import DESCRIPTION, narrow_trunk
from tiny_runs import TINY

from vla_ft.cli import main
from vla_ft.config import ExecutionConfig, load_run_config
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.deployment.export import _execution
from vla_ft.errors import UserError
from vla_ft.policies.act import lerobot_folder
from vla_ft.policies.act.config import Config
from vla_ft.training.trainer import train


def statistics(description=DESCRIPTION) -> DatasetStatistics:
    def feature(names):
        numbers = np.linspace(0.001, 1, len(names)).astype(np.float32)
        bounds = dict.fromkeys(("mean", "min", "max", "q01", "q99"), numbers)
        return FeatureStatistics(std=numbers, **bounds, count=10, names=names)

    names = {"action": description.action_names, "proprio": description.proprio_names}
    if description.environment_names:
        names["env_state"] = description.environment_names
    return DatasetStatistics(features={key: feature(value) for key, value in names.items()}, source_hash="x")


def folder(config: Config, description=DESCRIPTION, generation="processors", **more):
    options = {"actions_per_chunk": 100, "ensemble": None, "generation": generation, **more}
    return lerobot_folder(config, description, statistics(description), **options)


@pytest.mark.parametrize(
    ("settings", "generation", "told"),
    [
        ({"camera_fusion": "gated"}, "processors", "LeRobot's ACT cannot express camera_fusion=gated"),
        ({"observation_steps": 3}, "processors", "cannot express observation_steps=3"),
        ({"backbone": "clip_vit_b32"}, "processors", "backbone=clip_vit_b32"),
        ({"image_size": (64, 64)}, "processors", r"image_size=\(64, 64\)"),
        ({"std_epsilon": 1e-3}, "buffers", r"model.std_epsilon is 0.001; LeRobot up to 0.3.3 adds 1e-08 always"),
    ],
)
def test_what_lerobot_has_not_is_refused(settings, generation, told):
    with pytest.raises(UserError, match=told):
        folder(Config(**settings), generation=generation)


def test_our_scale_is_its_std():
    form = folder(Config())
    state = form.states["policy_preprocessor_step_3_normalizer_processor.safetensors"]
    ours = np.maximum(statistics()["action"].unbiased_std, 1e-2)
    np.testing.assert_array_equal(state["action.std"], ours)
    assert ours[0] == np.float32(1e-2), "the floor"
    assert state["observation.images.top.mean"].shape == (3, 1, 1)
    torch.testing.assert_close(state["observation.images.top.std"].flatten(), torch.tensor([0.229, 0.224, 0.225]))
    (normalizer,) = [
        s for s in form.texts["policy_preprocessor.json"]["steps"] if s["registry_name"].startswith("norm")
    ]
    assert normalizer["config"]["eps"] == 0.0


def test_an_environment_state_is_normalised_there_too():
    description = dataclasses.replace(DESCRIPTION, environment_names=("x", "y"))
    form = folder(Config(), description, "buffers")
    assert form.texts["config.json"]["input_features"]["observation.environment_state"] == {"type": "ENV", "shape": [2]}
    assert form.texts["config.json"]["normalization_mapping"]["ENV"] == "MEAN_STD"
    assert "normalize_inputs.buffer_observation_environment_state.std" in form.buffers
    assert list(form.texts) == ["config.json"] and not form.states


def test_a_kl_that_is_averaged_weighs_as_much_when_it_is_summed():
    assert folder(Config(kl_weight=8.0, kl_reduction="mean", latent_dim=4)).texts["config.json"]["kl_weight"] == 2.0


def test_an_image_size_that_changes_nothing_is_no_obstacle():
    assert folder(Config(image_size=(32, 32))).config.image_size is None


@pytest.mark.parametrize(
    ("execution", "expected"),
    [
        (ExecutionConfig(), (4, None)),
        (ExecutionConfig(steps=2), (2, None)),
        (ExecutionConfig(steps=9), (4, None)),
        (ExecutionConfig(temporal_ensemble=True), (1, 0.01)),
        (ExecutionConfig(temporal_ensemble=True, ensemble_weights="uniform"), (1, 0.0)),
        (ExecutionConfig(temporal_ensemble=True, ensemble_window=4), (1, 0.01)),
    ],
)
def test_how_chunks_are_executed_there(execution, expected):
    assert _execution(execution, load_run_config([*TINY, "output=x"])) == expected


def test_the_command_says_what_it_wrote_and_leaves_nothing_behind(tmp_path, capsys):
    run = tmp_path / "run"
    window = ("execution.temporal_ensemble=true", "execution.ensemble_window=2")
    with narrow_trunk():
        train(load_run_config([*TINY, f"output={run}", "steps=1", *window]))
        words = ["export", f"checkpoint={run}", f"output={tmp_path / 'policy'}", "--format", "lerobot"]
        assert main(words) == 2
        assert "it cannot express execution.ensemble_window=2 (model.chunk_size is 4)" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        assert main([*words, "dtype=bf16"]) == 2
        assert "LeRobot's folder holds fp32" in capsys.readouterr().err
        assert main([*words, "execution.steps=2"]) == 0
    said = capsys.readouterr().out
    assert "the average weights of step 1, for LeRobot's act (2 actions of a chunk)" in said
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
