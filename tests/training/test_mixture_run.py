"""ACT on a mixture of two datasets: trains, resumes exactly, carries the statistics of each, predicts for one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_runs import TINY, final_bytes, metrics

from vla_ft.config import load_run_config
from vla_ft.data.mock import MockConfig, write_mock
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.deployment.evaluation import EvaluationConfig, evaluate
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError
from vla_ft.training.trainer import train


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two mock sets whose pictures differ in size, and a root for them."""
    root = tmp_path_factory.mktemp("sets")
    common = {"min_length": 8, "max_length": 12, "episodes": 4}
    return root, {
        "left": write_mock(root, MockConfig(**common, image_size=(32, 32), seed=1)),
        "right": write_mock(root, MockConfig(**common, image_size=(40, 48), seed=2)),
    }


def configured(sets, output, *words):
    root, paths = sets
    mix = [f"data.mix.{name}.path={path.name}" for name, path in paths.items()]
    return load_run_config(
        [*TINY, f"data.path={root}", *mix, "data.mix.right.weight=0.5", "data.image_size=[32,32]",
         "data.augmentation=cogact", f"output={output}", *words]
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(sets, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    train(configured(sets, output))
    return output


def test_a_resumed_run_equals_an_uninterrupted_one(sets, whole, tmp_path):
    train(configured(sets, tmp_path, "steps=4", "schedule.name=constant", "resume=never"))
    reference = tmp_path / "reference"
    train(configured(sets, reference, "schedule.name=constant"))
    train(configured(sets, tmp_path, "schedule.name=constant"))
    assert final_bytes(tmp_path) == final_bytes(reference)
    assert metrics(tmp_path)[-1] == metrics(reference)[-1]


def test_a_checkpoint_has_the_statistics_of_each(whole, sets):
    folder = whole / "checkpoints" / "step_00000008"
    statistics = DatasetStatistics.load(folder / "statistics.json")
    assert list(statistics.parts) == ["left", "right"]
    assert not np.array_equal(statistics.of("left")["action"].mean, statistics.of("right")["action"].mean)
    logged = metrics(whole)[-1]
    assert np.isfinite(logged["validation/action_mae"])
    assert logged["train/epoch"] > 0
    description = json.loads((folder / "description.json").read_text())
    assert description["cameras"] == {"top": [32, 32]}


def test_prediction_is_in_the_units_of_the_named_dataset(whole):
    with pytest.raises(UserError, match="say whose units are meant"):
        Predictor.load(whole)
    observation = {"proprio": np.zeros(14, np.float32), "image_top": np.zeros((32, 32, 3), np.uint8)}
    actions = {}
    for name in ("left", "right"):
        predictor = Predictor.load(whole, dataset=name)
        actions[name] = predictor.predict(observation)
        assert predictor.processor.statistics.episodes == 3, "one of four is held out"
    assert not np.allclose(actions["left"], actions["right"])


def test_evaluation_on_one_of_the_datasets(whole, sets):
    _, paths = sets
    table = evaluate(EvaluationConfig(checkpoint=str(whole), data=str(paths["right"]), dataset="right", samples=6))
    assert "repeat last action" in table
    with pytest.raises(UserError, match="say whose units"):
        evaluate(EvaluationConfig(checkpoint=str(whole), data=str(paths["right"])))


def test_another_weight_is_another_run(sets, whole):
    with pytest.raises(UserError, match=r"data\.mix\.right\.weight was 0\.5, is 1\.0"):
        train(configured(sets, whole, "data.mix.right.weight=1.0", "steps=9"))
