"""RDT through the real trainer: train, continue to the bit, cache the tower, evaluate; and the commands around."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vla_ft.cli import main
from vla_ft.config import load_run_config, recipe_names
from vla_ft.deployment.evaluation import EvaluationConfig, evaluate, measure
from vla_ft.errors import UserError
from vla_ft.training.tracking import read_metrics
from vla_ft.training.trainer import train

TINY = (
    "recipe=rdt-mock", "steps=4", "batch.per_device=2", "data.workers=0", "data.mock.episodes=3",
    "data.mock.min_length=8", "data.mock.max_length=10", "data.mock.image_size=[16,16]", "model.hidden_size=16",
    "model.depth=2", "model.heads=2", "model.chunk_size=4", "model.vision.hidden_size=8", "checkpoint.every=2",
    "validation.every=2", "validation.samples=4", "validation.training_samples=4", "logging.every=1",
)  # fmt: skip


def run(output: Path, *words: str) -> dict[str, np.ndarray]:
    """Train, and the weights and the average that came out."""
    train(load_run_config([*TINY, f"output={output}", *words]))
    folder = sorted((output / "checkpoints").glob("step_*"))[-1]
    return {f"{part} {k}": v for part in ("model", "ema") for k, v in load_file(folder / f"{part}.safetensors").items()}


def run_weights(output: Path, *words: str) -> dict[str, np.ndarray]:
    """Train, and the weights that came out."""
    train(load_run_config([*TINY, f"output={output}", *words]))
    folder = sorted((output / "checkpoints").glob("step_*"))[-1]
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    output = tmp_path_factory.mktemp("rdt") / "whole"
    return output, run(output)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not np.array_equal(one[name], other[name])] == []


def test_a_continued_run_is_the_same_run(whole: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    run(tmp_path, "steps=2")
    assert_same(run(tmp_path), whole[1])


def test_a_continued_run_with_augmented_pictures_is_the_same_run(tmp_path: Path) -> None:
    words = ["data.augmentation=rdt", "ema=null", "validation.every=1000"]
    once = run_weights(tmp_path / "once", *words)
    run_weights(tmp_path / "twice", *words, "steps=2")
    assert_same(run_weights(tmp_path / "twice", *words), once)
    assert any(not np.array_equal(v, once[k]) for k, v in run_weights(tmp_path / "plain", *words[1:]).items())


def test_cached_tokens_train_the_same_weights(whole: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    cached = run(tmp_path, "frozen_features.parts=[vision]")
    for name, value in whole[1].items():
        np.testing.assert_allclose(cached[name], value, rtol=0, atol=2e-3, err_msg=name)
    losses = [[line["train/loss"] for line in read_metrics(place)] for place in (whole[0], tmp_path)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_run_on_rotations_learns_their_means_first(tmp_path: Path) -> None:
    joints = ",".join(f"arm_joint_{i}_pos" for i in range(10))
    words = [
        f"model.vector.action=[eef_euler_x,eef_euler_y,eef_euler_z,{joints},gripper_open]",
        "validation.every=1000",
    ]
    whole_run = run_weights(tmp_path / "once", *words, "ema=null")
    run_weights(tmp_path / "twice", *words, "ema=null", "steps=2")
    assert_same(run_weights(tmp_path / "twice", *words, "ema=null"), whole_run)


def test_published_measures_are_logged_for_both_kinds_of_episodes(whole: tuple[Path, dict[str, np.ndarray]]) -> None:
    last = read_metrics(whole[0])[-1]
    for kind in ("validation", "training_sample"):
        assert last[f"{kind}/overall_avg_sample_mse"] > 0 and last[f"{kind}/overall_avg_sample_l2err"] > 0
        (own,) = [
            value for name, value in last.items() if name.startswith(f"{kind}/mock_") and name.endswith("_sample_mse")
        ]
        assert own == pytest.approx(last[f"{kind}/overall_avg_sample_mse"], rel=1e-5)
        # model.vector=aloha divides nothing: over the 14 dimensions of 128 that there are, both are the same error.
        assert last[f"{kind}/action_l1"] == pytest.approx(last[f"{kind}/action_mae"], rel=1e-4)
    assert whole[1].keys() > {"ema model.x_pos_embed", "model vision.tower.post_layernorm.weight"}


def test_published_measures_reach_tensorboard(whole: tuple[Path, dict[str, np.ndarray]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = whole[0].rglob("events.out.tfevents*")
    shown = EventAccumulator(str(events)).Reload()
    for kind in ("validation", "training_sample"):
        points = shown.Scalars(f"{kind}/overall_avg_sample_mse")
        logged = [line[f"{kind}/overall_avg_sample_mse"] for line in read_metrics(whole[0]) if f"{kind}/loss" in line]
        assert [point.step for point in points] == [2, 4]
        assert [point.value for point in points] == pytest.approx(logged, rel=1e-6)


def test_checkpoint_is_evaluated_in_robot_units(whole: tuple[Path, dict[str, np.ndarray]]) -> None:
    data = next(whole[0].glob("mock_*"))
    config = EvaluationConfig(checkpoint=str(whole[0]), data=str(data), samples=4)
    assert "repeat last action, robot units" in evaluate(config)
    numbers = measure(config)
    for guess in ("policy", "repeat_last_action"):  # model.vector=aloha divides nothing
        robot, unified = numbers[f"{guess}_per_joint"], numbers[f"{guess}_normalized_per_joint"]
        assert len(robot) == 14 and unified == pytest.approx(robot, rel=1e-4)


def test_the_average_goes_out_in_the_published_form(
    whole: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "published"
    assert main(["export", "format=rdt", f"checkpoint={whole[0]}", f"output={output}"]) == 0
    assert "the average weights of step 4" in capsys.readouterr().out
    for name, value in load_file(output / "model.safetensors").items():
        np.testing.assert_array_equal(value, whole[1][f"ema {name}"])
    assert main(["export", "--format", "rdt", f"checkpoint={whole[0]}", f"output={output}"]) == 2
    assert "exists already" in capsys.readouterr().err
    words = [f"init.path={output}", "steps=1"]
    run(tmp_path / "again", *words)
    assert main(["train", *TINY, f"output={tmp_path / 'wrong'}", *words, "model.heads=4"]) == 2
    assert "rdt.num_heads 2 (here 4)" in capsys.readouterr().err


def test_an_instruction_without_embedding_stops_before_the_first_step(tmp_path: Path) -> None:
    words = ["model.language.encoder=t5-v1_1-xxl", f"model.language.embeddings={tmp_path / 'none'}"]
    with pytest.raises(UserError, match="No embedding by t5-v1_1-xxl of the instruction 'move to the disc'"):
        run(tmp_path / "run", *words)
    store = tmp_path / "none" / "t5-v1_1-xxl@1"
    store.mkdir(parents=True)
    with pytest.raises(UserError, match="of the instruction 'move to the disc'"):
        run(tmp_path / "run", *words)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("rdt-")])
def test_recipes_are_whole(name: str) -> None:
    config = load_run_config([f"recipe={name}", "data.path=somewhere"])
    assert config.policy == "rdt" and config.freeze == ("vision",)
    if name != "rdt-mock":
        assert config.batch.per_device * config.batch.accumulation == 32
        assert (config.model.hidden_size == 2048) == ("1b" in name)
        assert config.data.augmentation == "rdt"


def test_statistics_command_writes_the_published_file(
    golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes, output = golden_root / "rdt" / "episodes", tmp_path / "dataset_stat.json"
    if not episodes.is_dir():
        pytest.skip("the golden episodes are not in this checkout")
    output.write_text('{"other": {"dataset_name": "other"}}')
    assert main(["data", "statistics", str(episodes), "data.cameras=[]", "name=agilex", f"output={output}"]) == 0
    assert "agilex, 3 of 3 episodes" in capsys.readouterr().out
    found = json.loads(output.read_text())
    published = json.loads((golden_root / "rdt" / "dataset_stat.json").read_text())["agilex"]
    assert found["other"] == {"dataset_name": "other"} and found["agilex"].keys() == published.keys()
    for key in ("state_mean", "state_std", "state_min", "state_max"):
        np.testing.assert_allclose(found["agilex"][key], published[key], rtol=1e-5, atol=1e-7)
    main(["data", "statistics", str(episodes), "data.cameras=[]", "name=agilex", f"output={output}", "shortest=135"])
    assert "left out: stat_extra/episode_2.hdf5 has 130 steps" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize(
    "words",
    [
        ("engine=zero2", "precision=bf16", "devices=2"),
        ("optimizer.name=adamw8bit", "precision=bf16_stochastic", "ema=null"),
    ],
)
def test_the_ways_of_the_large_recipes_train(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "vla_ft", "train", *TINY, f"output={tmp_path}", "frozen_dtype=bf16", *words]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, "activation_checkpointing=true"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path)[-1]["training_sample/overall_avg_sample_mse"] > 0


def test_a_recipe_is_drafted_before_anything_is_embedded(
    whole: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    data, output = next(whole[0].glob("mock_*")), tmp_path / "mine.yaml"
    assert main(["recipe", "from-data", str(data), "policy=rdt", f"output={output}"]) == 0
    config = load_run_config([f"recipe={output}"])
    assert config.model.vector == "aloha"
    assert config.model.cameras.in_order == ("top", "wrist", None)
