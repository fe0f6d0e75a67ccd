"""SIMPLER's interface on recorded chunks: ensemble, grippers of both robots, rotations, and CogACT behind it."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from vla_ft.deployment.adaptive_ensemble import AdaptiveEnsemble, adaptive_average
from vla_ft.deployment.cogact_simpler import CogACTInference
from vla_ft.deployment.simpler import SETUPS, SimplerPolicy, StickyGripper, axis_angle, find_setup
from vla_ft.deployment.temporal_aggregation import OpenLoop
from vla_ft.errors import UserError

FRAME = np.zeros((48, 64, 3), np.uint8)


class Recorded(SimplerPolicy):
    """Answers with recorded chunks [16, 7], one a step."""

    def __init__(self, robot: str, chunks: np.ndarray, **options: float) -> None:
        setup = find_setup(robot)
        super().__init__(setup, AdaptiveEnsemble(setup.ensemble_horizon), **options)
        self.chunks, self.seen = list(chunks), []

    def predict(self, image: np.ndarray, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        self.seen.append((self.task, sorted(observation)))
        return self.chunks[len(self.seen) - 1]


def chunks(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.1, size=(count, 16, 7))


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
    recorded = chunks()
    recorded[:, :, 6] = np.repeat([1.0, 0.0], 6)[:, None]
    policy = Recorded("widowx_bridge", recorded, action_scale=2.0)
    policy.reset("put carrot on plate")
    grippers = []
    for step in range(12):
        raw, action = policy.step(FRAME, "put carrot on plate")
        first = max(0, step - 6)
        said = np.stack([recorded[i][step - i] for i in range(first, step + 1)])
        expected = adaptive_average(said, 0.1)
        np.testing.assert_allclose(np.concatenate(list(raw.values())), expected, atol=1e-12)
        np.testing.assert_allclose(action["world_vector"], 2 * expected[:3])
        np.testing.assert_allclose(action["rot_axangle"], 2 * axis_angle(*expected[3:6]))
        assert action["terminate_episode"].tolist() == [0.0] and action["gripper"].shape == (1,)
        grippers.append(action["gripper"].item())
    assert set(grippers) == {1.0, -1.0} and grippers[0] == 1 and grippers[-1] == -1


def test_googles_robot_holds_a_change_for_ten_steps() -> None:
    recorded = chunks(30)
    recorded[:, :, 6] = np.where(np.arange(30) < 5, 1.0, 0.0)[:, None]
    policy = Recorded("google_robot", recorded)
    policy.reset("close drawer")
    grippers = [policy.step(FRAME)[1]["gripper"].item() for _ in range(30)]
    start = next(i for i, value in enumerate(grippers) if value > 0.5)
    np.testing.assert_allclose(grippers[:5], 0, atol=1e-9)
    assert start in (5, 6)
    assert all(value > 0.5 for value in grippers[start : start + 10])
    assert all(abs(value) < 0.5 for value in grippers[start + 10 :])


def test_a_held_change_is_not_cut_short() -> None:
    sticky = StickyGripper(3)
    said = [1, 1, 0, 1, 0, 0, 1, 1, 1, 1]
    got = [sticky.step(np.array([float(value)])).item() for value in said]
    assert got == [0, 0, 1, 1, 1, 0, -1, -1, -1, 0]
    sticky.reset()
    assert sticky.step(np.array([0.0])).item() == 0


def test_a_new_task_begins_an_episode() -> None:
    recorded = chunks(4)
    policy = Recorded("widowx_bridge", recorded)
    policy.step(FRAME, "first", proprio=np.zeros(7))
    policy.step(FRAME, "first")
    raw, _ = policy.step(FRAME, "second")
    np.testing.assert_allclose(raw["world_vector"], recorded[2][0, :3])
    assert policy.seen == [("first", ["proprio"]), ("first", []), ("second", [])]


@pytest.mark.parametrize("bad", [FRAME.astype(np.float32), FRAME[..., :1], FRAME[..., 0], None])
def test_other_images_are_refused(bad: object) -> None:
    with pytest.raises(UserError, match="expected RGB, uint8"):
        Recorded("google_robot", chunks(1)).step(bad)  # type: ignore[arg-type]


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


def test_cogact_in_simpler(tmp_path: Path) -> None:
    from vla_ft.policies.cogact.inference import load_vla

    small = examples()
    run = small.publish(tmp_path / "run", small.model(), names=("bridge_orig", "other"))  # type: ignore[attr-defined]
    vla = load_vla(run, tokenizer="stand-in")
    policy = CogACTInference(vla, policy_setup="widowx_bridge", action_ensemble_horizon=2, device="cpu")
    assert policy.unnorm_key == "bridge_orig" and policy.execution.horizon == 2  # type: ignore[attr-defined]
    policy.reset("move sponge near apple")
    frames = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
    for frame in frames:
        raw, action = policy.step(frame, "move sponge near apple")
        assert all(np.isfinite(value).all() for value in (*raw.values(), *action.values()))
        assert action["gripper"].item() in (1.0, -1.0)
    alone = CogACTInference(vla, unnorm_key="other", action_ensemble=False, use_bf16=False, device="cpu")
    assert isinstance(alone.execution, OpenLoop)
    with pytest.raises(UserError, match="Unknown unnorm_key 'fractal20220817_data'"):
        CogACTInference(vla, policy_setup="google_robot", device="cpu")
