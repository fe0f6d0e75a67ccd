"""SIMPLER's interface on a recorded episode: ensemble, grippers of both robots, rotations, and CogACT behind it."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recorded_observations import CAMERAS, chunks, instruction, observations

from vla_ft.deployment.adaptive_ensemble import AdaptiveEnsemble, adaptive_average
from vla_ft.deployment.cogact_simpler import CogACTInference
from vla_ft.deployment.simpler import SETUPS, SimplerPolicy, StickyGripper, axis_angle, find_setup
from vla_ft.deployment.temporal_aggregation import OpenLoop
from vla_ft.errors import UserError
from vla_ft.policies.cogact.inference import CogActVla, load_vla

FRAME: np.ndarray = observations()[0]["image"][CAMERAS["widowx_bridge"]]["rgb"]


class Recorded(SimplerPolicy):
    """Answers with given chunks [16, 7], one a step."""

    def __init__(self, robot: str, chunks: np.ndarray, **options: float) -> None:
        setup = find_setup(robot)
        super().__init__(setup, AdaptiveEnsemble(setup.ensemble_horizon), **options)
        self.chunks, self.seen = list(chunks), []

    def predict(self, image: np.ndarray, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        self.seen.append((self.task, sorted(observation)))
        return self.chunks[len(self.seen) - 1]


def rotation(vector: np.ndarray) -> np.ndarray:
    """Rodrigues' formula."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle if angle else (1.0, 0.0, 0.0)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


@pytest.mark.parametrize("seed", range(5))
def test_three_rotations_are_one(seed: int) -> None:
    roll, pitch, yaw = np.random.default_rng(seed).uniform(-1.5, 1.5, 3)
    x, y, z = np.eye(3)
    expected = rotation(yaw * z) @ rotation(pitch * y) @ rotation(roll * x)
    np.testing.assert_allclose(rotation(axis_angle(roll, pitch, yaw)), expected, atol=1e-12)
    assert axis_angle(0, 0, 0).tolist() == [0, 0, 0]


def test_a_widowx_averages_seven_chunks_and_opens_or_closes() -> None:
    recorded, task = chunks(), instruction()
    policy = Recorded("widowx_bridge", recorded, action_scale=2.0)
    policy.reset(task)
    grippers = []
    for step in range(len(recorded)):
        raw, action = policy.step(FRAME, task)
        first = max(0, step - 6)
        said = np.stack([recorded[i][step - i] for i in range(first, step + 1)])
        expected = adaptive_average(said, 0.1)
        np.testing.assert_allclose(np.concatenate(list(raw.values())), expected, atol=1e-12)
        np.testing.assert_allclose(action["world_vector"], 2 * expected[:3])
        np.testing.assert_allclose(action["rot_axangle"], 2 * axis_angle(*expected[3:6]))
        assert action["terminate_episode"].tolist() == [0.0] and action["gripper"].shape == (1,)
        grippers.append(action["gripper"].item())
    assert grippers == [1.0 if opened > 0.5 else -1.0 for opened in recorded[:, 0, 6]]
    assert len(set(grippers)) == 2


def test_googles_robot_holds_a_change_for_ten_steps() -> None:
    """The episode opens the gripper at 8, closes it on the cube at 15 (while opening is held) and lets go at 34."""
    recorded = chunks()
    opened = recorded[:, 0, 6]
    assert np.flatnonzero(np.diff(opened)).tolist() == [7, 14, 33]
    policy = Recorded("google_robot", recorded)
    policy.reset(instruction())
    grippers = np.array([policy.step(FRAME)[1]["gripper"].item() for _ in recorded])
    np.testing.assert_allclose(grippers[:8], 0, atol=1e-9)
    assert [int(np.sign(round(value, 1))) for value in grippers[8:]] == [-1] * 10 + [1] * 10 + [0] * 6 + [-1] * 5


@pytest.mark.parametrize("length", [1, 4, 6, 7])
def test_chunks_shorter_than_the_ensembles_window(length: int) -> None:
    """Seven are averaged for a WidowX; of shorter chunks those that still reach this step."""
    recorded = chunks(length)
    policy = Recorded("widowx_bridge", recorded)
    policy.reset(instruction())
    for step in range(12):
        raw, _ = policy.step(FRAME)
        said = np.stack([recorded[i][step - i] for i in range(max(0, step - length + 1), step + 1)])
        np.testing.assert_allclose(np.concatenate(list(raw.values())), adaptive_average(said, 0.1), atol=1e-12)


@pytest.mark.parametrize("horizon", [0, -1])
def test_an_ensemble_of_nothing_is_refused(horizon: int) -> None:
    with pytest.raises(UserError, match=f"action_ensemble_horizon is {horizon}; .*Give 1 or more"):
        AdaptiveEnsemble(horizon)


def test_no_step_without_an_instruction() -> None:
    with pytest.raises(UserError, match=r"no instruction. Call reset\(task_description\) first"):
        Recorded("widowx_bridge", chunks()).step(FRAME)


def test_a_held_change_is_not_cut_short() -> None:
    sticky = StickyGripper(3)
    said = [1, 1, 0, 1, 0, 0, 1, 1, 1, 1]
    got = [sticky.step(np.array([float(value)])).item() for value in said]
    assert got == [0, 0, 1, 1, 1, 0, -1, -1, -1, 0]
    sticky.reset()
    assert sticky.step(np.array([0.0])).item() == 0


def test_a_new_task_begins_an_episode() -> None:
    recorded = chunks()
    policy = Recorded("widowx_bridge", recorded)
    policy.step(FRAME, "first", proprio=np.zeros(7))
    policy.step(FRAME, "first")
    raw, _ = policy.step(FRAME, "second")
    np.testing.assert_allclose(raw["world_vector"], recorded[2][0, :3])
    assert policy.seen == [("first", ["proprio"]), ("first", []), ("second", [])]


@pytest.mark.parametrize("bad", [FRAME.astype(np.float32), FRAME[..., :1], FRAME[..., 0], None])
def test_other_images_are_refused(bad: object) -> None:
    with pytest.raises(UserError, match="expected RGB, uint8"):
        Recorded("google_robot", chunks()).step(bad, "task")  # type: ignore[arg-type]


def test_unknown_robots_are_named() -> None:
    with pytest.raises(UserError, match="Did you mean 'widowx_bridge'"):
        find_setup("widowx")
    assert SETUPS["google_robot"].dataset == "fractal20220817_data"


def examples() -> object:
    path = Path(__file__).parents[1] / "policies" / "cogact" / "cogact_examples.py"
    spec = importlib.util.spec_from_file_location("cogact_examples", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("cogact_examples", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vla(tmp_path_factory: pytest.TempPathFactory) -> CogActVla:
    """A small model with chunks of eight that was trained on both robots' data."""
    small = examples()
    names = tuple(setup.dataset for setup in SETUPS.values())
    one = small.model(future_action_window_size=7)  # type: ignore[attr-defined]
    run = small.publish(tmp_path_factory.mktemp("simpler") / "run", one, names=names)  # type: ignore[attr-defined]
    return load_vla(run, tokenizer="stand-in")


@pytest.mark.parametrize("robot", SETUPS)
def test_cogact_acts_through_a_recorded_episode(vla: CogActVla, robot: str) -> None:
    """Step by step what ``predict_action`` says of the same pictures from the same noise, averaged by the formula."""
    policy = CogACTInference(vla, policy_setup=robot, use_bf16=False, num_ddim_steps=1, device="cpu")
    policy.reset(instruction())
    window, said = SETUPS[robot].ensemble_horizon, []
    for step, observation in enumerate(observations(robot)):
        picture = observation["image"][CAMERAS[robot]]["rgb"]
        torch.manual_seed(step)
        raw, action = policy.step(picture, instruction(), **observation["agent"])
        torch.manual_seed(step)
        chunk, _ = vla.predict_action(
            Image.fromarray(picture), instruction(), SETUPS[robot].dataset, num_ddim_steps=1, noise=torch.randn(1, 8, 7)
        )
        said.append(chunk)
        now = np.stack([said[i][step - i] for i in range(max(0, step - window + 1), step + 1)])
        norms = np.linalg.norm(now, axis=1) * np.linalg.norm(now[-1])
        weights = np.exp(0.1 * (now @ now[-1]) / (norms + 1e-7))
        expected = weights @ now / weights.sum()
        np.testing.assert_allclose(np.concatenate(list(raw.values())), expected, atol=1e-9)
        np.testing.assert_allclose(action["rot_axangle"], axis_angle(*expected[3:6]), atol=1e-9)
        assert robot != "widowx_bridge" or action["gripper"].item() == (1.0 if expected[6] > 0.5 else -1.0)
    assert np.abs(np.diff([chunk[0, :6] for chunk in said], axis=0)).max() > 0.01, "predictions that change"


def test_the_published_classs_arguments(vla: CogActVla) -> None:
    """All of ``sim_cogact/cogact_policy.py``; bfloat16, first actions, units that nobody knows."""
    options = {"horizon": 0, "image_size": [224, 224], "action_dim": 7, "use_ddim": True, "use_bf16": True}
    small = copy.deepcopy(vla)
    policy = CogACTInference(small, policy_setup="google_robot", device="cpu", **options)  # type: ignore[arg-type]
    assert policy.unnorm_key == "fractal20220817_data" and policy.execution.horizon == 2  # type: ignore[attr-defined]
    raw, action = policy.step(FRAME, instruction())
    assert all(np.isfinite(value).all() for value in (*raw.values(), *action.values()))
    assert next(small.vlm.parameters()).dtype == torch.bfloat16
    alone = CogACTInference(vla, action_ensemble=False, use_bf16=False, device="cpu")
    assert isinstance(alone.execution, OpenLoop)
    with pytest.raises(UserError, match="Unknown unnorm_key 'bridge'"):
        CogACTInference(vla, "bridge", device="cpu")
    with pytest.raises(UserError, match="action_ensemble_horizon is 0"):
        CogACTInference(vla, action_ensemble_horizon=0, device="cpu")
