"""The numbers of ``vla-ft evaluate``: by joint and step, against sums by hand, in the run's precision, no targets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from narrow_trunk import narrow_trunk
from PIL import Image
from tiny_runs import TINY

from vla_ft.cli import main
from vla_ft.config import ExecutionConfig
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.windows import build_sample
from vla_ft.deployment.action_errors import action_errors, executed_errors
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run whose compute type is bfloat16."""
    output = tmp_path_factory.mktemp("run")
    with narrow_trunk():
        assert main(["train", *TINY, f"output={output}", "steps=2", "precision=bf16"]) == 0
    return output


@pytest.fixture(scope="module")
def reader(run):
    return open_dataset(next(run.glob("mock_*")))


@pytest.fixture(scope="module")
def predictor(run):
    with narrow_trunk():
        return Predictor.load(run)


def samples(predictor, reader, episode):
    window, keys = predictor.processor.window, predictor.processor.keys
    return [build_sample(reader, episode, step, window, keys) for step in range(int(reader.lengths[episode]))]


def test_the_errors_by_hand(predictor, reader):
    numbers = action_errors(predictor, reader, np.array([1]), samples=100, batch=100)
    read = samples(predictor, reader, 1)[1:]
    real = np.stack([sample["action_pad_mask"] for sample in read])
    target = np.stack([sample["action"] for sample in read])
    error = np.abs(predictor.predict_samples(read) - target)
    names = reader.description.action_names
    assert list(numbers["policy_per_joint"]) == list(names)
    np.testing.assert_allclose(list(numbers["policy_per_joint"].values()), error[real].mean(0), rtol=1e-5)
    by_step = [error[:, h][real[:, h]].mean(0) for h in range(target.shape[1])]
    grid = np.array(list(numbers["policy_per_joint_and_step"].values()))
    np.testing.assert_allclose(grid, np.transpose(by_step), rtol=1e-5)
    np.testing.assert_allclose(numbers["policy"], np.mean(by_step, axis=1), rtol=1e-5)
    assert numbers["policy_mean"] == pytest.approx(error[real].mean(), rel=1e-5)
    # ACT divides by the standard deviation, so the normalised error is the robot's over it.
    scale = np.maximum(predictor.processor.statistics["action"].unbiased_std, 1e-2)
    for guess in ("policy", "repeat_last_action"):
        robot, normalized = (list(numbers[f"{guess}{end}_per_joint"].values()) for end in ("", "_normalized"))
        np.testing.assert_allclose(np.array(normalized) * scale, robot, rtol=1e-3, atol=1e-6)


def test_targets_are_not_shown_and_cannot_matter(predictor, reader, monkeypatch):
    read = samples(predictor, reader, 0)[:2]
    shown = []
    usual = predictor.model.sample
    monkeypatch.setattr(predictor.model, "sample", lambda batch: shown.append(set(batch)) or usual(batch))
    chunks, batch = predictor.predict_normalized(read)
    assert {"action", "action_pad_mask"} <= set(batch)
    assert shown == [set(batch) - {"action", "action_pad_mask"}]
    for sample in read:
        sample["action"] = sample["action"] + 100
    assert torch.equal(predictor.predict_normalized(read)[0], chunks), "the latent is zero, not of the targets"


def test_it_computes_as_the_run_did_unless_told_otherwise(run, predictor, reader):
    with narrow_trunk():
        exact, again = (Predictor.load(run, precision=precision) for precision in ("fp32", "bf16"))
    assert (predictor.precision, exact.precision, again.precision) == ("bf16", "fp32", "bf16")
    read = samples(predictor, reader, 0)[:2]
    rounded = predictor.predict_normalized(read)[0]
    batch = predictor.processor.collate(read)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rounded, predictor.model.sample(batch).float())
    assert torch.equal(rounded, again.predict_normalized(read)[0])
    whole = exact.predict_normalized(read)[0]
    assert not torch.equal(rounded, whole)
    torch.testing.assert_close(rounded, whole, atol=0.05, rtol=0.05)


def test_the_table_the_file_and_the_picture(run, reader, tmp_path, capsys):
    output = tmp_path / "errors.json"
    words = ["execution.temporal_ensemble=true", "execution.ensemble_window=3", "execution.ensemble_weights=uniform"]
    with narrow_trunk():
        assert (
            main(["evaluate", f"checkpoint={run}", f"data={next(run.glob('mock_*'))}", f"output={output}", *words]) == 0
        )
    said = capsys.readouterr().out
    numbers = json.loads(output.read_text())
    assert numbers["precision"] == "bf16" and ", bf16; mean absolute error" in said
    for name, value in numbers["policy_per_joint"].items():
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [name]]
        assert f"{value:.4f}" in line.split()
    assert "temporal ensemble of the last 3 chunks, uniform weights" in said
    assert f"{numbers['executed_mean']:.4f}" in said
    assert str(tmp_path / "errors.png") in said
    with Image.open(tmp_path / "errors.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_errors_of_what_is_executed(predictor, reader):
    """Open loop asks every four steps; the average of three chunks is the mean of their predictions of a step."""
    length = int(reader.lengths[0])
    chunks = [predictor.predict_samples([sample])[0] for sample in samples(predictor, reader, 0)]
    recorded = reader.read(0, np.arange(length), ("action",))["action"]
    loop = executed_errors(predictor, reader, np.array([0]), ExecutionConfig(), samples=1000)
    by_hand = [np.abs(chunks[t - t % 4][t % 4] - recorded[t]) for t in range(length)]
    assert loop["executed_mean"] == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert loop["executed_steps"] == length
    ensemble = ExecutionConfig(temporal_ensemble=True, ensemble_window=3, ensemble_weights="uniform")
    mean = executed_errors(predictor, reader, np.array([0]), ensemble, samples=1000)
    averaged = [np.mean([chunks[t - age][age] for age in range(min(t + 1, 3))], axis=0) for t in range(length)]
    assert mean["executed_mean"] == pytest.approx(np.mean(np.abs(np.array(averaged) - recorded)), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output=errors.txt"], "must end in .json"),
        (["precision=bf17"], "Did you mean 'bf16'"),
        (["execution.ensemble_window=3"], "execution.temporal_ensemble=true as well"),
        (["execution.temporal_ensemble=true", "execution.steps=5"], "Leave one of them out"),
        (["execution.temporal_ensembel=true"], "Unknown key 'execution.temporal_ensembel'"),
    ],
)
def test_mistakes_are_told(run, words, message, capsys):
    assert main(["evaluate", f"checkpoint={run}", f"data={next(run.glob('mock_*'))}", *words]) == 2
    assert message in capsys.readouterr().err


def test_too_short_to_evaluate(predictor, reader, monkeypatch):
    monkeypatch.setattr(reader, "lengths", np.ones_like(reader.lengths))
    with pytest.raises(UserError, match="too short to evaluate on"):
        action_errors(predictor, reader, np.array([0]), samples=4, batch=4)
