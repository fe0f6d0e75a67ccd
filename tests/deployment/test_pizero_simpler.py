"""π0 behind SIMPLER's loop on recorded observations of both robots: what reaches the model, and what comes out."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from recorded_observations import CAMERAS, observations

from vla_ft.data.published_statistics import to_octo
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.deployment.opencv_resize import lanczos4
from vla_ft.deployment.pizero_simpler import PiZeroInference, bridge_proprio, fractal_proprio
from vla_ft.deployment.predictor import Predictor
from vla_ft.deployment.simpler import HeldGripper, axis_angle
from vla_ft.errors import UserError
from vla_ft.policies.pizero import Config, build_model
from vla_ft.policies.pizero.checkpoint import write_published

DIMENSIONS = {"widowx_bridge": 7, "google_robot": 8}
ROBOTS = tuple(CAMERAS)


def examples() -> ModuleType:
    path = Path(__file__).parents[1] / "policies" / "pizero" / "pizero_examples.py"
    spec = importlib.util.spec_from_file_location("pizero_examples", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("pizero_examples", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


SIZES: dict[str, Any] = {**examples().SIZES, "expert_rope_theta": 10000.0, "time_period": 10000.0}


def recorded(robot: str, step: int = 0) -> dict[str, Any]:
    """A control step of the recorded episode, with what else the fork's environments give (ManiSkill2, rgbd)."""
    found, camera = observations(robot)[step], CAMERAS[robot]
    rgb = found["image"][camera]["rgb"]
    return {
        **found,
        "extra": {"tcp_pose": np.zeros(7)},
        "camera_param": {camera: {"intrinsic_cv": np.eye(3)}},
        "image": {camera: {"rgb": rgb, "depth": np.zeros((*rgb.shape[:2], 1))}},
    }


def published_files(folder: Path, robot: str) -> tuple[Path, Path]:
    """A small checkpoint in the published form, and the statistics of its data."""
    config = Config(**{**SIZES, "action_dim": 7, "proprio_dim": DIMENSIONS[robot]})
    small = examples()
    about = small.description(
        proprio_names=tuple(f"p{i}" for i in range(DIMENSIONS[robot])), proprio_units=("",) * DIMENSIONS[robot]
    )
    torch.manual_seed(0)
    write_published(folder / "step3.pt", build_model(config, about).state_dict().items(), config, 3)
    random = np.random.default_rng(1)

    def feature(width: int) -> FeatureStatistics:
        low, high = random.uniform(-2, -1, (2, width)).astype(np.float32) * [[1], [-1]]
        low, high = low.astype(np.float32), high.astype(np.float32)
        names = tuple(map(str, range(width)))
        return FeatureStatistics(mean=low, std=high, min=low, max=high, q01=low, q99=high, count=9, names=names)

    features = {"action": feature(7), "proprio": feature(DIMENSIONS[robot])}
    statistics = DatasetStatistics(features=features, source_hash="", episodes=2)
    (folder / "statistics.json").write_text(json.dumps(to_octo(statistics)))
    return folder / "step3.pt", folder / "statistics.json"


def policy_of(folder: Path, robot: str) -> PiZeroInference:
    weights, statistics = published_files(folder, robot)
    return PiZeroInference(weights, robot, statistics=statistics, device="cpu", tokenizer="stand-in")


class Chunks:
    """Stands before a predictor: remembers what it was shown, and answers with recorded chunks [4, 7]."""

    def __init__(self, predictor: Predictor, chunks: np.ndarray) -> None:
        self.predictor, self.chunks = predictor, list(chunks)
        self.seen: list[tuple[dict[str, np.ndarray], str]] = []

    def predict(self, observation: dict[str, np.ndarray], instruction: str) -> np.ndarray:
        self.predictor.predict(observation, instruction)  # it is one that the policy takes
        self.seen.append((observation, instruction))
        return self.chunks[len(self.seen) - 1]


def replay(policy: PiZeroInference, chunks: np.ndarray) -> Chunks:
    behind = Chunks(policy.predictor, chunks)
    policy.predictor = behind  # type: ignore[assignment]
    return behind


@pytest.mark.parametrize("robot", ROBOTS)
def test_what_the_model_sees(tmp_path: Path, robot: str) -> None:
    policy, observation = policy_of(tmp_path, robot), recorded(robot)
    behind = replay(policy, np.zeros((1, 4, 7)))
    policy.reset("put carrot on plate")
    policy.step_on(observation, "put carrot on plate")
    seen, instruction = behind.seen[0]
    camera, pose = CAMERAS[robot], observation["agent"]["eef_pos"].astype(np.float64)
    np.testing.assert_array_equal(seen["image_primary"], lanczos4(observation["image"][camera]["rgb"], (28, 28)))
    convert = bridge_proprio if robot == "widowx_bridge" else fractal_proprio
    np.testing.assert_array_equal(seen["proprio"], convert(pose))
    assert instruction == "put carrot on plate" and len(seen["proprio"]) == DIMENSIONS[robot]


@pytest.mark.parametrize(("robot", "steps"), [("widowx_bridge", 4), ("google_robot", 2)])
def test_so_many_actions_of_a_chunk_are_executed(tmp_path: Path, robot: str, steps: int) -> None:
    policy = policy_of(tmp_path, robot)
    chunks = np.random.default_rng(2).normal(scale=0.1, size=(6, 4, 7))
    behind, held = replay(policy, chunks), HeldGripper(15)
    commands = [[held.step(opened).item() for opened in chunk[:, 6:]] for chunk in chunks]
    policy.reset("stack")
    for number in range(8):
        raw, action = policy.step_on(recorded(robot, number))
        chunk, place = divmod(number, steps)
        expected = chunks[chunk, place]
        assert len(behind.seen) == chunk + 1
        np.testing.assert_allclose(np.concatenate(list(raw.values())), expected)
        np.testing.assert_allclose(action["rot_axangle"], axis_angle(*expected[3:6]))
        opened = 1.0 if expected[6] > 0.5 else -1.0
        assert action["gripper"].item() == (opened if robot == "widowx_bridge" else commands[chunk][place])


def test_a_command_is_held_for_fifteen_predicted_actions(tmp_path: Path) -> None:
    """Closed from the first; the model changes its mind at once: eight executed steps (2 of every 4) until it acts."""
    policy = policy_of(tmp_path, "google_robot")
    chunks = np.zeros((8, 4, 7))
    chunks[:, :, 6] = 1
    chunks[0, 0, 6] = 0
    replay(policy, chunks)
    policy.reset("close drawer")
    commands = [policy.step_on(recorded("google_robot"))[1]["gripper"].item() for _ in range(10)]
    assert commands == [1.0] * 8 + [-1.0] * 2
    policy.reset("close drawer")
    assert policy.gripper.step(np.array([0.5])).item() == 0, "a new episode holds nothing"


def test_a_new_instruction_ends_no_episode(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "google_robot")
    behind = replay(policy, np.zeros((3, 4, 7)))
    policy.reset("pick apple")
    for number, task in enumerate(["pick apple", "put apple into drawer", "put apple into drawer"]):
        policy.step_on(recorded("google_robot", number), task)
    assert [instruction for _, instruction in behind.seen] == ["pick apple", "put apple into drawer"]


@pytest.mark.parametrize("robot", ROBOTS)
def test_published_weights_act_in_the_units_of_their_statistics(tmp_path: Path, robot: str) -> None:
    policy, observation = policy_of(tmp_path, robot), recorded(robot)
    statistics: Mapping[str, Any] = json.loads((tmp_path / "statistics.json").read_text())
    torch.manual_seed(3)
    raw, action = policy.step_on(observation, "close middle drawer")
    batch_of = policy.predictor.processor.collate
    seen = {
        "image_primary": lanczos4(observation["image"][CAMERAS[robot]]["rgb"], (28, 28)),
        "proprio": policy.robot.proprio(observation["agent"]["eef_pos"].astype(np.float64)),
    }
    sample = policy.predictor.sample_of(seen, "close middle drawer")
    torch.manual_seed(3)
    with torch.no_grad():
        normalized = policy.predictor.model.sample(batch_of([sample])).numpy()[0, 0]
    low, high = (np.array(statistics["action"][key]) for key in ("p01", "p99"))
    expected = np.where(np.arange(7) < 6, (normalized + 1) / 2 * (high - low) + low, normalized)
    np.testing.assert_allclose(np.concatenate(list(raw.values())), expected, atol=1e-6)
    proprio = policy.predictor.processor.collate([sample])["proprio"].numpy()[0]
    low, high = (np.array(statistics["proprio"][key]) for key in ("p01", "p99"))
    np.testing.assert_allclose(proprio, np.clip(2 * (seen["proprio"] - low) / (high - low) - 1, -1, 1), atol=1e-5)
    assert np.isfinite(np.concatenate([action["world_vector"], action["rot_axangle"], action["gripper"]])).all()


def test_half_precision_stays_close(tmp_path: Path) -> None:
    weights, statistics = published_files(tmp_path, "google_robot")
    actions = []
    for half in (False, True):
        options = {"statistics": statistics, "use_bf16": half, "device": "cpu", "tokenizer": "stand-in"}
        policy = PiZeroInference(weights, "google_robot", **options)
        assert {p.dtype for p in policy.predictor.model.parameters()} == {torch.bfloat16 if half else torch.float32}
        assert policy.predictor.precision == ("bf16" if half else "fp32")
        torch.manual_seed(0)
        actions.append(
            policy.predict(recorded("google_robot")["image"]["overhead_camera"]["rgb"], {"proprio": [0] * 8})
        )
    assert 0 < np.abs(actions[0] - actions[1]).max() < 0.1


def test_bad_input_is_told(tmp_path: Path) -> None:
    policy, observation = policy_of(tmp_path, "widowx_bridge"), recorded("widowx_bridge")
    image = observation["image"]["3rd_view_camera"]["rgb"]
    with pytest.raises(UserError, match=r"no 'eef_pos'.*fork allenzren/SimplerEnv"):
        policy.step(image, "task", qpos=np.zeros(8))
    for pose in (np.zeros(8), np.ones(7)):
        with pytest.raises(UserError, match=r"a quaternion \(w, x, y, z\)"):
            policy.step(image, "task", eef_pos=pose)
    with pytest.raises(UserError, match=r"no picture of '3rd_view_camera'.*cameras: overhead_camera"):
        policy.step_on(recorded("google_robot"))
    with pytest.raises(UserError, match="expected RGB, uint8"):
        policy.step(image.astype(np.float32), "task", eef_pos=np.ones(8))
    weights, statistics = tmp_path / "step3.pt", tmp_path / "statistics.json"
    with pytest.raises(UserError, match=r"weights alone. Give statistics="):
        PiZeroInference(weights, "widowx_bridge", device="cpu", **SIZES)
    with pytest.raises(UserError, match="7 action and 7 proprio dimensions; google_robot has 7 and 8"):
        PiZeroInference(weights, "google_robot", statistics=statistics, device="cpu", **SIZES)
    with pytest.raises(UserError, match="no file of published weights: statistics and model settings"):
        PiZeroInference(tmp_path, "google_robot", statistics=statistics, device="cpu")
    with pytest.raises(UserError, match=r"model\.time_period=10000 \(here 100\)"):
        PiZeroInference(weights, statistics=statistics, device="cpu", **{**SIZES, "time_period": 100.0})
    with pytest.raises(UserError, match="7 action and 7 proprio dimensions; google_robot has 7 and 8"):
        PiZeroInference(policy.predictor, "google_robot")
    (tmp_path / "broken.json").write_text("[1")
    with pytest.raises(UserError, match="no file of statistics"):
        PiZeroInference(weights, statistics=tmp_path / "broken.json", device="cpu", **SIZES)


@pytest.mark.parametrize("steps", [0, -1, 5])
def test_steps_that_a_chunk_does_not_have_are_refused(tmp_path: Path, steps: int) -> None:
    predictor = policy_of(tmp_path, "google_robot").predictor
    with pytest.raises(UserError, match=rf"act_steps={steps}: .* has 4 actions, expected 1 to 4"):
        PiZeroInference(predictor, "google_robot", act_steps=steps)
    policy = PiZeroInference(predictor, "google_robot", act_steps=1)
    behind = replay(policy, np.zeros((3, 4, 7)))
    for number in range(3):
        policy.step_on(recorded("google_robot", number), "pick apple")
    assert len(behind.seen) == 3


def test_a_loaded_policy_takes_no_options_of_loading(tmp_path: Path) -> None:
    predictor = policy_of(tmp_path, "widowx_bridge").predictor
    for options in (
        {"use_bf16": True}, {"statistics": "s.json"}, {"tokenizer": "stand-in"}, {"dataset": "bridge"},
        {"use_torch_compile": True}, {"device": "cpu"},
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"{next(iter(options))}: the Predictor that was given is loaded"):
            PiZeroInference(predictor, "widowx_bridge", **options)
