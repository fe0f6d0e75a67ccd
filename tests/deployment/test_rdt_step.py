"""The published interface gives what the predictor gives, and the loop plays chunks slowly enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdt_examples import mock_batch, tiny

from vla_ft.deployment.bimanual_loop import LoopConfig, Seen, approach, drive
from vla_ft.deployment.rdt_step import RoboticDiffusionTransformerModel
from vla_ft.errors import UserError
from vla_ft.policies.rdt.config import VectorConfig
from vla_ft.policies.rdt.model import Rdt


@pytest.fixture
def policy() -> RoboticDiffusionTransformerModel:
    torch.manual_seed(0)
    model = Rdt(tiny(vector="agilex"))
    torch.nn.init.normal_(model.model.final_layer.ffn_final.fc2.weight)
    return RoboticDiffusionTransformerModel(model, control_frequency=50, device="cpu")


def test_step_is_the_predictors_prediction(policy: RoboticDiffusionTransformerModel, tmp_path: Path) -> None:
    batch, processor = mock_batch(tmp_path, tiny(vector="agilex"), [(0, 0)])
    torch.manual_seed(3)
    expected = processor.unnormalize(policy.model.sample(batch))
    raw = processor.state_map.from_vector(batch["state"][0].numpy())
    now = {key: batch[key][0, 1].numpy() for key in ("image_top", "image_wrist")}
    pictures = [None, None, None, now["image_top"], now["image_wrist"], None]
    for text in ("move to the disc", policy.language.get("move to the disc")[None]):
        torch.manual_seed(3)
        found = policy.step(raw, pictures, text)
        assert found.shape == (1, 4, 14) and found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_grippers_are_scaled_on_the_way_in_and_out(policy: RoboticDiffusionTransformerModel) -> None:
    seen: list[torch.Tensor] = []
    policy.model.sample_from = lambda given, images, noise: seen.append(given.state) or torch.ones(1, 4, 128)  # type: ignore
    proprio = np.zeros((1, 14))
    proprio[0, [6, 13]] = 4.7908, 4.7888
    chunk = policy.step(proprio, [None] * 6, "go")
    assert seen[0][0, 0, [60, 10]].tolist() == pytest.approx([1.0, 1.0])
    assert chunk[0, 0, [6, 13]].tolist() == pytest.approx([11.8997, 13.9231], rel=1e-6)
    assert chunk[0, 0, [0, 12]].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("proprio", "images", "text", "told"),
    [
        (np.zeros((2, 14)), [None] * 6, "go", r"shape \(2, 14\), expected \[1, 14\]"),
        (np.zeros(13), [None] * 6, "go", r"shape \(13,\), expected \[1, 14\]: left_arm_joint_0_pos"),
        (["open"] * 14, [None] * 6, "go", r"proprio is no array of numbers .*Expected \[1, 14\] floats"),
        (np.full(14, np.nan), [None] * 6, "go", "proprio has left_arm_joint_0_pos nan, .*expected finite numbers"),
        (np.zeros(14), [None] * 3, "go", "3 images, expected 6"),
        (np.zeros(14), [None] * 5 + [np.zeros((4, 4), np.uint8)], "go", "expected RGB"),
        (np.zeros(14), [None] * 5 + [np.zeros((4, 4, 3), np.float32)], "go", "A picture is float32, expected uint8"),
        (np.zeros(14), [None] * 6, torch.zeros(1, 3, 5), r"expected floats \[1, tokens, 12\]"),
        (np.zeros(14), [None] * 6, torch.zeros(1, 3, 12, dtype=torch.int64), "text_embeds is torch.int64"),
        (np.zeros(14), [None] * 6, torch.zeros(1, 20, 12), "20 tokens, the model has positions for 1 to 16"),
        (np.zeros(14), [None] * 6, torch.zeros(1, 0, 12), "0 tokens"),
        (np.zeros(14), [None] * 6, torch.full((2, 12), torch.inf), "NaN or infinity"),
    ],
)
def test_wrong_inputs_are_told(
    policy: RoboticDiffusionTransformerModel, proprio: np.ndarray, images: list[object], text: object, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        policy.step(proprio, images, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "proprio",
    [
        torch.ones(1, 14, dtype=torch.bfloat16),
        torch.ones(14, dtype=torch.float64, requires_grad=True),
        [1.0] * 14,
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
    ids=["bfloat16", "with a gradient", "list", "on a card"],
)
def test_joints_come_in_any_type_and_from_any_device(policy: RoboticDiffusionTransformerModel, proprio: Any) -> None:
    given = torch.ones(1, 14).cuda() if isinstance(proprio, str) else proprio
    torch.manual_seed(3)
    expected = policy.step(np.ones(14), [None] * 6, "go")
    torch.manual_seed(3)
    assert torch.equal(policy.step(given, [None] * 6, "go"), expected)


def test_other_robots_are_refused() -> None:
    with pytest.raises(UserError, match="drives two arms"):
        RoboticDiffusionTransformerModel(Rdt(tiny(vector=VectorConfig(action=("gripper_open",)))), device="cpu")


class Line:
    """A robot that reaches what it is told at once."""

    def __init__(self) -> None:
        self.qpos = np.zeros(14, dtype=np.float32)
        self.commands: list[np.ndarray] = []

    def observe(self) -> Seen:
        return Seen(self.qpos, np.full((8, 8, 3), len(self.commands) % 256, dtype=np.uint8))

    def command(self, action: np.ndarray) -> None:
        self.commands.append(action)
        self.qpos = action


class Rising:
    """Chunks that go up by 0.025 an action, from where the robot is."""

    def __init__(self) -> None:
        self.images: list[list[np.ndarray | None]] = []

    def step(self, proprio: np.ndarray, images: list[np.ndarray | None], text_embeds: object) -> torch.Tensor:
        self.images.append(images)
        return torch.stack([torch.from_numpy(proprio) + 0.025 * (i + 1) for i in range(4)])[None]

    def command_of(self, proprio: np.ndarray) -> np.ndarray:
        return np.asarray(proprio, dtype=np.float32)


def test_chunks_are_played_in_small_steps_and_planned_anew() -> None:
    robot, policy = Line(), Rising()
    config = LoopConfig(ticks=24, jpeg=None)
    assert drive(policy, robot, "go", config) == 24
    moves = np.diff(np.stack([np.zeros(14), *robot.commands]), axis=0)
    assert np.abs(moves).max() <= 0.01 + 1e-6
    np.testing.assert_allclose(robot.commands[-1], 0.2, atol=1e-6)  # two chunks of four, three commands an action
    assert len(policy.images) == 2 and policy.images[0][:3] == [None, None, None]
    past, now = policy.images[1][0], policy.images[1][3]
    assert past is not None and now is not None
    assert (past[0, 0, 0], now[0, 0, 0]) == (9, 12)  # one action before, and now


def test_an_open_gripper_is_not_closed_by_the_first_command(policy: RoboticDiffusionTransformerModel) -> None:
    """Agilex' grippers are measured to 4.79 and commanded to 11.9 and 13.9: open is open in both."""
    target = torch.zeros(1, 4, 128)
    target[..., [60, 10]] = torch.tensor([0.9, 1.0])
    policy.model.sample_from = lambda given, images, noise: target  # type: ignore[method-assign,assignment]
    robot = Line()
    robot.qpos[[6, 13]] = 4.7908, 4.7888
    drive(policy, robot, "go", LoopConfig(ticks=4, jpeg=None))
    sent = np.stack(robot.commands)[:, [6, 13]]
    steps = np.diff([[11.8997, 13.9231], *sent.tolist()], axis=0)
    assert np.abs(steps).max() <= 0.2 + 1e-5
    np.testing.assert_allclose(sent[:, 1], 13.9231, rtol=1e-6)
    assert sent[0, 0] < 11.8997 and (np.diff(sent[:, 0]) < 0).all()


def test_a_loop_ends_when_it_is_told_to() -> None:
    robot = Line()
    config = LoopConfig(interpolate=False, execute=2)
    assert drive(Rising(), robot, "go", config, done=lambda: len(robot.commands) >= 5) == 5
    np.testing.assert_allclose([c[0] for c in robot.commands], [0.025, 0.05, 0.075, 0.1, 0.125], atol=1e-6)


def test_grippers_may_move_faster() -> None:
    target = np.zeros(14)
    target[6] = 0.4
    assert len(list(approach(np.zeros(14), target, LoopConfig()))) == 2
    target[0] = 0.05
    assert len(list(approach(np.zeros(14), target, LoopConfig()))) == 5
