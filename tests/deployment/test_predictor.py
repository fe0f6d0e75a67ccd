from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_runs import TINY

from vla_ft.cli import main
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.windows import build_sample
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on mock data, with an averaged model."""
    output = tmp_path_factory.mktemp("run")
    assert main(["train", *TINY, f"output={output}", "steps=2", "ema.decay=0.5"]) == 0
    return output


@pytest.fixture(scope="module")
def dataset(run):
    return next(run.glob("mock_*"))


def observation(dataset, episode=0, step=3):
    reader = open_dataset(dataset)
    read = reader.read(episode, np.array([step]), ("proprio", "image_top"))
    return {"proprio": read["proprio"][0], "image_top": read["image_top"][0]}


@pytest.mark.newcomer
def test_a_checkpoint_gives_actions_in_robot_units(run, dataset):
    predictor = Predictor.load(run)
    chunk = predictor.predict(observation(dataset), "move to the disc")
    assert chunk.shape == (4, 14)
    assert chunk.dtype == np.float32
    reader, processor = open_dataset(dataset), predictor.processor
    sample = build_sample(reader, 0, 3, processor.window, processor.keys)
    np.testing.assert_array_equal(chunk, predictor.predict_samples([sample])[0])
    statistics = processor.statistics["action"]
    with torch.no_grad():
        normalized = predictor.model.sample(processor.collate([sample])).numpy()[0]
    scale = np.maximum(statistics.unbiased_std, 1e-2)
    np.testing.assert_allclose(chunk, normalized * scale + statistics.mean, rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_used(run, dataset, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = Predictor.load(tmp_path / "run").predict(observation(dataset))
    folder = tmp_path / "run" / "checkpoints" / "step_00000002"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["ema.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "ema.safetensors").unlink()
    assert not np.array_equal(Predictor.load(folder).predict(observation(dataset)), checkpoint)


def test_without_statistics_there_is_no_policy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000002" / "statistics.json").unlink()
    with pytest.raises(UserError, match=r"statistics\.json"):
        Predictor.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_top": None}, "The observation has no 'image_top'"),
        ({"image_top": np.zeros((16, 16, 3), np.uint8)}, r"expected uint8 \(1, 32, 32, 3\)"),
        ({"image_top": np.zeros((32, 32, 3), np.float32)}, "'image_top' is float32"),
        ({"proprio": np.zeros(7)}, r"'proprio' is float64 \(1, 7\), expected float32 \(1, 14\)"),
    ],
)
def test_a_wrong_observation_is_told(run, dataset, change, message):
    given = {k: v for k, v in {**observation(dataset), **change}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        Predictor.load(run).predict(given)


def test_evaluate_measures_against_repeating_the_last_action(run, dataset, tmp_path, capsys):
    output = tmp_path / "numbers.json"
    assert main(["evaluate", f"checkpoint={run}", f"data={dataset}", "samples=100", f"output={output}"]) == 0
    assert "repeat last action, robot units" in capsys.readouterr().out
    numbers = json.loads(output.read_text())
    reader = open_dataset(dataset)
    (episode,) = numbers["episodes"]
    action = reader.read(episode, np.arange(reader.lengths[episode]), ("action",))["action"]
    # The baseline by hand: at horizon step h, the error of action[t - 1] for action[t + h].
    by_hand = [np.abs(action[1 + h :] - action[: len(action) - 1 - h]).mean() for h in range(4)]
    np.testing.assert_allclose(numbers["repeat_last_action"], by_hand, rtol=1e-5)
    assert len(numbers["policy"]) == 4


def test_evaluate_refuses_another_robot(run, tmp_path, capsys):
    assert main(["data", "mock", f"output={tmp_path}", "episodes=2", "action_dim=7", "image_size=[32,32]"]) == 0
    other = next(tmp_path.glob("mock_*"))
    capsys.readouterr()
    assert main(["evaluate", f"checkpoint={run}", f"data={other}", "episodes=all"]) == 2
    assert "was trained with action_names" in capsys.readouterr().err


def test_evaluate_refuses_to_guess_what_was_held_out(run, dataset, tmp_path, capsys):
    grown = tmp_path / "grown"
    shutil.copytree(dataset, grown)
    shutil.copy(grown / "episode_0.hdf5", grown / "episode_9.hdf5")
    assert main(["evaluate", f"checkpoint={run}", f"data={grown}"]) == 2
    assert "has changed since" in capsys.readouterr().err
    assert main(["evaluate", f"checkpoint={run}", f"data={grown}", "episodes=all", "samples=8"]) == 0


def test_evaluate_looks_at_its_output_first(run, dataset, capsys):
    assert main(["evaluate", f"checkpoint={run}", f"data={dataset}", "output=/no/such/x.json"]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_evaluate_on_a_card_that_is_not_there(run, dataset, capsys):
    assert main(["evaluate", f"checkpoint={run}", f"data={dataset}", "device=cuda"]) == 2
    assert "torch finds none" in capsys.readouterr().err


def test_evaluate_without_a_checkpoint(tmp_path, capsys):
    assert main(["evaluate", f"checkpoint={tmp_path / 'no'}", "data=x"]) == 2
    assert "No checkpoint at" in capsys.readouterr().err


def test_weights_may_be_held_in_bfloat16(run, dataset):
    wide, half = Predictor.load(run), Predictor.load(run, held="bf16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16} and half.precision == "bf16"
    assert {b.dtype for b in half.model.buffers() if b.is_floating_point()} == {torch.float32}, "buffers stay"
    seen = observation(dataset)
    for one in (wide, half):
        one.model.eval()
    np.testing.assert_allclose(half.predict(seen), wide.predict(seen), atol=0.1)
    with pytest.raises(UserError, match="Weights in bfloat16 compute in bfloat16"):
        Predictor.load(run, precision="fp32", held="bf16")


def test_inference_is_compiled_by_blocks(run, dataset, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(options) or function)
    plain, fast = Predictor.load(run), Predictor.load(run, compiled=True)
    assert len(compiled) == 1 + len(fast.model.blocks()), "a probe, and every block"
    np.testing.assert_array_equal(fast.predict(observation(dataset)), plain.predict(observation(dataset)))
    words = ["episodes=all", "samples=4", "compile=true", "held=bf16"]
    assert main(["evaluate", f"checkpoint={run}", f"data={dataset}", *words]) == 0
    assert ", bf16; mean absolute error" in capsys.readouterr().out

    def broken(*_, **__):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    assert main(["evaluate", f"checkpoint={run}", f"data={dataset}", *words]) == 2
    assert "compile=true needs a working compiler" in capsys.readouterr().err


def test_statistics_are_of_published_files_alone(run, dataset, tmp_path, capsys):
    words = [f"checkpoint={run}", f"data={dataset}", f"statistics={tmp_path / 'numbers.json'}"]
    assert main(["evaluate", *words]) == 2
    assert "is no file of published weights" in capsys.readouterr().err
    for word in ("camera=wrist", "camera=primary", "model.chunk_size=5"):
        assert main(["evaluate", f"checkpoint={run}", f"data={dataset}", word]) == 2
        assert f"(here: {word.partition('=')[0]})" in capsys.readouterr().err


def test_a_known_name_that_was_not_fetched_says_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_WEIGHTS", str(tmp_path))
    assert main(["evaluate", "checkpoint=pizero-bridge", "data=x", "model.tokenizer=stand-in"]) == 2
    assert "vla-ft fetch pizero-bridge" in capsys.readouterr().err
    assert main(["evaluate", "checkpoint=pizero-brigde", "data=x"]) == 2
    assert "No checkpoint at pizero-brigde" in capsys.readouterr().err
