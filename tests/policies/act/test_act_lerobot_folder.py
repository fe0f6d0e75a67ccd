"""LeRobot's policy folders: their own settings, normalisation and execution; training from them; what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_folders import MODES, Generation, statistics, write_folder
from narrow_trunk import narrow_trunk
from safetensors.torch import load_file, save_file
from tiny_runs import TINY

from vla_ft.cli import main
from vla_ft.config import load_run_config
from vla_ft.deployment.acting import Actor
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError
from vla_ft.policies.act import Config, load_weights
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.weights.catalogue import find_entry
from vla_ft.weights.places import FileRecord, Record

SIZES: dict[str, Any] = {
    "chunk_size": 5, "hidden_dim": 32, "heads": 4, "feedforward_dim": 24, "encoder_layers": 1, "decoder_layers": 1,
    "vae_encoder_layers": 1, "latent_dim": 4, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_trunk() -> Iterator[None]:
    with narrow_trunk():
        yield


def network(cameras: tuple[str, ...] = ("top",), seed: int = 0, **changes: Any) -> Act:
    torch.manual_seed(seed)
    config = Config.lerobot(**{**SIZES, **changes})
    return Act(config, Dimensions(cameras=cameras, action=14, proprio=14)).eval()


def seen(seed: int = 0, cameras: tuple[str, ...] = ("top",)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    images = {f"image_{camera}": random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for camera in cameras}
    return {"proprio": random.normal(size=14).astype(np.float32), **images}


def by_hand(model: Act, numbers: dict[str, Any], observation: dict[str, np.ndarray]) -> np.ndarray:
    """LeRobot's pipeline for MEAN_STD, written out: the chunk [K, A] in robot units."""
    state, action = numbers["observation.state"], numbers["action"]
    batch = {"proprio": torch.from_numpy((observation["proprio"] - state["mean"]) / (state["std"] + 1e-8))[None]}
    for camera in model.dimensions.cameras:
        pixel = numbers[f"observation.images.{camera}"]
        scaled = observation[f"image_{camera}"].transpose(2, 0, 1).astype(np.float32) / 255
        batch[f"image_{camera}"] = torch.from_numpy((scaled - pixel["mean"]) / (pixel["std"] + 1e-8))[None]
    with torch.no_grad():
        return model.sample(batch)[0].numpy() * action["std"] + action["mean"]


@pytest.mark.parametrize("generation", ["0.3", "0.6"])
def test_from_raw_observation_to_robot_units(tmp_path: Path, generation: Generation) -> None:
    """Two cameras of different pixel statistics, which neither generation keeps in its network."""
    model = network(("top", "wrist"))
    numbers = statistics(model)
    numbers["observation.images.wrist"]["mean"] = np.float32([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    predictor = Predictor.load(write_folder(tmp_path / "policy", model, numbers, generation))
    observation = seen(cameras=("top", "wrist"))
    expected = by_hand(model, numbers, observation)
    np.testing.assert_allclose(predictor.predict(observation), expected, rtol=1e-4, atol=1e-5)
    theirs = {"observation.state": observation["proprio"]}
    theirs |= {f"observation.images.{camera}": observation[f"image_{camera}"] for camera in ("top", "wrist")}
    np.testing.assert_array_equal(predictor.predict(theirs), predictor.predict(observation))
    assert set(predictor.config.model.pixel_statistics) == {"top", "wrist"}


@pytest.mark.parametrize("bounds", [("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99")])
def test_bounds(tmp_path: Path, bounds: tuple[str, str, str]) -> None:
    """2 (x - low) / (high - low) - 1; a constant dimension stays at -1 and comes out as its value."""
    mode, low, high = bounds
    model = network()
    numbers = statistics(model)
    for feature in ("observation.state", "action"):
        entry = numbers[feature]
        entry["max"][-1] = entry["min"][-1]
        entry |= {"q01": entry["min"], "q99": entry["max"]}
    modes = {**MODES, "STATE": mode, "ACTION": mode}
    predictor = Predictor.load(write_folder(tmp_path / "policy", model, numbers, modes=modes))
    observation = seen()
    state, action = numbers["observation.state"], numbers["action"]
    observation["proprio"][-1] = state[low][-1]
    width = np.where(state[high] == state[low], 1, state[high] - state[low])
    batch = predictor.processor.collate([predictor.sample_of(observation)])
    expected = 2 * (observation["proprio"] - state[low]) / width - 1
    np.testing.assert_allclose(batch["proprio"][0], expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        chunk = predictor.model.sample(batch)[0].numpy()
    out = (chunk + 1) / 2 * (action[high] - action[low]) + action[low]
    np.testing.assert_allclose(predictor.predict(observation), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "coefficient"), [(3, None), (1, 0.01), (1, None)])
def test_execution_is_the_folders_own(tmp_path: Path, steps: int, coefficient: float | None) -> None:
    model = network()
    numbers = statistics(model)
    values = {"n_action_steps": steps, "temporal_ensemble_coeff": coefficient}
    actor = Actor(Predictor.load(write_folder(tmp_path / "policy", model, numbers, **values)))
    chunks = [by_hand(model, numbers, seen(call)) for call in range(5)]
    for _ in range(2):
        for call in range(5):
            action = actor.step(seen(call))
            if coefficient is None:
                expected = chunks[call - call % steps][call % steps]
            else:
                weights = np.exp(-coefficient * np.arange(call + 1))
                expected = sum(w * chunks[i][call - i] for i, w in enumerate(weights)) / weights.sum()
            assert action.dtype == np.float32
            np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)
        actor.reset()


def test_features_are_renamed_as_the_folder_says(tmp_path: Path) -> None:
    model = network()
    rename = {
        "registry_name": "rename_observations_processor",
        "config": {"rename_map": {"joints": "observation.state"}},
    }
    folder = write_folder(tmp_path / "policy", model, statistics(model), steps=[rename])
    observation = seen()
    theirs = {"joints": observation["proprio"], "image_top": observation["image_top"]}
    predictor = Predictor.load(folder)
    np.testing.assert_array_equal(predictor.predict(theirs), predictor.predict(observation))


def words(output: Path, *more: str) -> list[str]:
    """A tiny run of a recipe whose own network is another one."""
    kept = [word for word in TINY if not word.startswith(("model.", "freeze", "ema"))]
    return ["train", *kept, f"output={output}", "steps=1", "optimizer.lr=1e-12", *more]


def test_a_published_policy_by_its_catalogue_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name stands for the file of weights; the configuration beside it counts all the same."""
    model = network()
    numbers = statistics(model)
    folder = write_folder(tmp_path / "act-transfer-cube", model, numbers, "0.3")
    entry = find_entry("act-transfer-cube")
    files = {path.name: FileRecord(path.stat().st_size) for path in folder.iterdir()}
    Record(entry.name, entry.origin, entry.revision, "", entry.load, "pinned", files, complete=True).write(folder)
    monkeypatch.setenv("VLA_FT_WEIGHTS", str(tmp_path))
    config = load_run_config(words(tmp_path / "run", "init.path=act-transfer-cube")[1:])
    assert config.model == Config.lerobot(**SIZES)
    expected = Predictor.load(folder).predict(seen())
    np.testing.assert_array_equal(Predictor.load(Path("act-transfer-cube")).predict(seen()), expected)


@pytest.mark.parametrize("generation", ["0.3", "0.6"])
def test_training_starts_from_a_folder(tmp_path: Path, generation: Generation, capsys: Any) -> None:
    """Its settings need not be typed; its statistics give way to the data's; the result is a policy of ours."""
    model = network(activation="gelu", feedforward_dim=40)
    numbers = statistics(model)
    numbers["observation.images.top"]["std"][:] = 0.25
    folder = write_folder(tmp_path / "policy", model, numbers, generation)
    assert main(words(tmp_path / "run", f"init.path={folder}", "model.kl_weight=3")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "statistics: of this run's data, as LeRobot" in out
    predictor = Predictor.load(tmp_path / "run")
    assert predictor.published is None
    expected = Config.lerobot(**{**SIZES, "feedforward_dim": 40}, activation="gelu", kl_weight=3)
    (pixels,) = predictor.config.model.pixel_statistics.values()  # what the trunk was trained on stays
    np.testing.assert_allclose(pixels, [[0.485, 0.456, 0.406], [0.25] * 3], rtol=1e-6)
    assert dataclasses.replace(predictor.config.model, pixel_statistics={}) == expected
    state = predictor.model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert predictor.predict(seen()).shape == (5, 14)


def test_what_leaves_no_trace_in_weights_must_agree(tmp_path: Path, capsys: Any) -> None:
    model = network()
    folder = write_folder(tmp_path / "policy", model, statistics(model))
    assert main(words(tmp_path / "run", f"init.path={folder}", "model.heads=2")) == 2
    assert "was trained with heads=4, the model has 2" in " ".join(capsys.readouterr().err.split())


def test_weights_that_read_an_environment_state_are_run_alone(tmp_path: Path) -> None:
    model = Act(Config.lerobot(**SIZES), Dimensions(cameras=("top",), action=14, proprio=14, env_state=3))
    folder = write_folder(tmp_path / "policy", model, statistics(model))
    with pytest.raises(UserError, match=r"reads an environment state .* can be run .*, not trained further"):
        load_weights(network(), str(folder))


def test_a_folder_is_evaluated(tmp_path: Path, capsys: Any) -> None:
    model = network()
    folder = write_folder(tmp_path / "policy", model, statistics(model))
    mock = ("episodes=2", "min_length=8", "max_length=9", "image_size=[32,32]")
    assert main(["data", "mock", f"output={tmp_path}", *mock]) == 0
    data = next(tmp_path.glob("mock_*"))
    assert main(["evaluate", f"checkpoint={folder}", f"data={data}", "episodes=all", "samples=4"]) == 0
    assert "policy, robot units" in capsys.readouterr().out
    assert main(["evaluate", f"checkpoint={folder}", f"data={data}"]) == 2
    assert "Use episodes=all" in capsys.readouterr().err


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def lose_statistics(folder: Path) -> None:
    for path in folder.glob("policy_*"):
        path.unlink()


def infinite(folder: Path) -> None:
    for path in folder.glob("policy_*.safetensors"):
        state = load_file(path)
        state["action.std"][0] = float("inf")
        save_file({name: value.clone() for name, value in state.items()}, path)


def without_state(folder: Path) -> None:
    path = folder / "policy_postprocessor.json"
    steps = json.loads(path.read_text())["steps"]
    del steps[0]["state_file"]
    edit(path, steps=steps)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_statistics, "neither policy_preprocessor.json nor statistics in model.safetensors"),
        (infinite, "statistics of action are 14 numbers, finite: False"),
        (without_state, "normalises by statistics that it lacks"),
        (lambda f: edit(f / "policy_preprocessor.json", steps=[{"registry_name": "delta_actions"}]), "'delta_actions'"),
        (lambda f: edit(f / "policy_postprocessor.json", steps=[]), "has no step unnormalizer_processor"),
        (lambda f: edit(f / "config.json", n_action_steps=9), "n_action_steps is 9, expected 1 to chunk_size, 5"),
        (lambda f: edit(f / "config.json", temporal_ensemble_coeff=0.01, n_action_steps=2), "must be 1, it is 2"),
        (lambda f: edit(f / "config.json", n_obs_steps=2), "n_obs_steps is 2"),
        (lambda f: edit(f / "config.json", vision_backbone="resnet101"), "'resnet101' is not built here"),
        (lambda f: edit(f / "config.json", chunk_size=6), "does not fit this model"),
        (lambda f: (f / "policy_postprocessor.json").write_text("{"), "cannot be read"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    model = network()
    folder = write_folder(tmp_path / "policy", model, statistics(model))
    damage(folder)
    with pytest.raises(UserError, match=message):
        Predictor.load(folder)


def test_no_vae_and_no_state(tmp_path: Path) -> None:
    model = network(use_vae=False)
    folder = write_folder(tmp_path / "policy", model, statistics(model))
    assert Predictor.load(folder).predict(seen()).shape == (5, 14)
    torch.manual_seed(0)
    blind = Act(Config.lerobot(**SIZES), Dimensions(cameras=("top",), action=14, proprio=0))
    folder = write_folder(tmp_path / "blind", blind, statistics(blind))
    edit(folder / "config.json", input_features={"observation.images.top": {"type": "VISUAL", "shape": [3, 32, 32]}})
    predictor = Predictor.load(folder)
    assert predictor.processor.keys == ("image_top",)
    assert predictor.predict({"image_top": seen()["image_top"]}).shape == (5, 14)


def test_what_a_folder_says_itself_is_taken_from_nobody_else(tmp_path: Path) -> None:
    model = network()
    folder = write_folder(tmp_path / "policy", model, statistics(model))
    options: tuple[dict[str, Any], ...] = (
        {"statistics": tmp_path / "other.json"}, {"camera": "wrist"}, {"settings": {"chunk_size": 3}}
    )  # fmt: skip
    for given, name in zip(options, ("statistics", "camera", "model.chunk_size"), strict=True):
        with pytest.raises(UserError, match=rf"is no file of published weights: .*\(here: {name}\)"):
            Predictor.load(folder, **given)
