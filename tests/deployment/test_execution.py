"""From a configuration to executed actions: windows and weights of the ensemble, and a policy that drives."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from narrow_trunk import narrow_trunk
from tiny_runs import TINY

from vla_ft.config import ExecutionConfig, load_run_config
from vla_ft.data.formats.registry import open_dataset
from vla_ft.deployment.acting import Actor
from vla_ft.deployment.execution import chunk_execution, describe
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError
from vla_ft.training.trainer import train

GUIDE = ExecutionConfig(temporal_ensemble=True, ensemble_window=10, ensemble_weights="uniform")


def chunks(steps: int, horizon: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(steps, horizon, 2)).astype(np.float32)


def run_through(config: ExecutionConfig, given: np.ndarray) -> np.ndarray:
    execution = chunk_execution(config, given.shape[1])
    return np.array([execution.step(lambda c=c: c) for c in given])


@pytest.mark.parametrize("horizon", [4, 50])
def test_the_guides_average_is_uniform_over_the_last_ten_chunks(horizon):
    given = chunks(30, horizon)
    expected = [
        np.mean([given[t - age][age] for age in range(min(t + 1, 10, horizon))], axis=0) for t in range(len(given))
    ]
    np.testing.assert_allclose(run_through(GUIDE, given), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coefficient", [0.01, -0.5])
def test_exponential_weights_begin_at_the_oldest_of_the_window(coefficient):
    given = chunks(12, 6)
    config = ExecutionConfig(temporal_ensemble=True, ensemble_window=3, ensemble_coefficient=coefficient)
    weights = np.exp(-coefficient * np.arange(3))
    expected = (given[5][2] * weights[0] + given[6][1] * weights[1] + given[7][0] * weights[2]) / weights.sum()
    np.testing.assert_allclose(run_through(config, given)[7], expected, rtol=1e-5)


def test_open_loop_by_configuration():
    given = chunks(6, 4)
    np.testing.assert_array_equal(run_through(ExecutionConfig(steps=2), given)[:4], given[[0, 0, 2, 2], [0, 1, 0, 1]])
    np.testing.assert_array_equal(run_through(ExecutionConfig(), given)[:5], given[[0, 0, 0, 0, 4], [0, 1, 2, 3, 0]])


def test_in_words():
    assert describe(ExecutionConfig()) == "open loop, all actions of a chunk"
    assert describe(ExecutionConfig(steps=8)) == "open loop, 8 actions of a chunk"
    assert describe(GUIDE) == "temporal ensemble of the last 10 chunks, uniform weights"
    plain = describe(ExecutionConfig(temporal_ensemble=True))
    assert plain == "temporal ensemble of all chunks, exponential weights, coefficient 0.01"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    words = ("steps=2", "execution.temporal_ensemble=true", "execution.ensemble_window=2")
    with narrow_trunk():
        train(load_run_config([*TINY, f"output={output}", *words]))
    return output


def test_a_run_keeps_how_its_policy_is_executed_and_it_may_change(run):
    stored = json.loads((run / "checkpoints" / "step_00000002" / "config.json").read_text())["execution"]
    assert (stored["temporal_ensemble"], stored["ensemble_window"]) == (True, 2)
    with narrow_trunk():  # a resume with another execution is the same training
        report = train(load_run_config([*TINY, f"output={run}", "steps=3", "execution.steps=1"]))
    assert report.step == 3


def test_a_policy_drives_as_its_run_says(run):
    with narrow_trunk():
        predictor = Predictor.load(run / "checkpoints" / "step_00000002")
    reader = open_dataset(next(run.glob("mock_*")))
    read = reader.read(0, np.arange(5), ("proprio", "image_top"))
    seen = [{key: value[t] for key, value in read.items()} for t in range(5)]
    predicted = [predictor.predict(one) for one in seen]
    actor = Actor(predictor)
    actions = [actor.step(one) for one in seen]
    assert actions[0].dtype == np.float32
    np.testing.assert_array_equal(actions[0], predicted[0][0])
    weights = np.exp(-0.01 * np.arange(2))
    expected = (predicted[3][1] * weights[0] + predicted[4][0] * weights[1]) / weights.sum()
    np.testing.assert_allclose(actions[4], expected, rtol=1e-5)
    actor.reset()
    np.testing.assert_array_equal(actor.step(seen[2]), predicted[2][0])
    open_loop = Actor(predictor, ExecutionConfig(steps=3))
    np.testing.assert_array_equal([open_loop.step(one) for one in seen], [*predicted[0][:3], *predicted[3][:2]])
    with pytest.raises(UserError, match="The observation has no 'image_top'"):
        Actor(predictor).step({"proprio": seen[0]["proprio"]})


def test_an_observation_window_begins_with_the_first_frame_repeated(run, monkeypatch):
    with narrow_trunk():
        predictor = Predictor.load(run)
    window = predictor.processor.window
    monkeypatch.setattr(predictor.processor, "window", dataclasses.replace(window, observation_steps=3))
    given = []

    def predict(samples):
        given.append(samples[0]["observation"])
        return np.zeros((1, window.action_horizon, 14), np.float32)

    monkeypatch.setattr(predictor, "predict_samples", predict)
    actor = Actor(predictor, ExecutionConfig(steps=1))
    for number in range(4):
        actor.step({"proprio": np.full(14, number), "image_top": np.full((32, 32, 3), number, np.uint8)})
    assert [one["proprio"][:, 0].tolist() for one in given] == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert [one["pad_mask"].tolist() for one in given[:3]] == [[False, False, True], [False, True, True], [True] * 3]
    assert given[3]["image_top"].shape == (3, 32, 32, 3)
