"""The real simulator: kinematics, the expert's success, and that recorded actions succeed again in gym-aloha itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_ft.errors import UserError
from vla_ft.simulation.demonstration import OutOfReachError, attempt_transfer, draw_start
from vla_ft.simulation.expert import HOME_LEFT, HOME_RIGHT, LEFT_ROTATION, Targets
from vla_ft.simulation.geometry import Pose
from vla_ft.simulation.record import RecordConfig, record
from vla_ft.simulation.rendering import select_backend

if importlib.util.find_spec("gym_aloha") is None:
    pytest.skip("gym_aloha is not installed (the sim add-on)", allow_module_level=True)
try:
    select_backend()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

from vla_ft.simulation.environment import ACTION_DIM, CubeTransfer


@pytest.fixture(scope="module")
def environment() -> Iterator[CubeTransfer]:
    with CubeTransfer() as made:
        yield made


def gym_aloha_outcome(actions: np.ndarray, cube: np.ndarray) -> tuple[float, np.ndarray]:
    """Reward and qpos after ``actions`` in gym-aloha's own environment, less its pictures of every step."""
    from gym_aloha.env import AlohaEnv
    from gym_aloha.tasks import sim

    control = AlohaEnv("transfer_cube")._env
    control.task.get_observation = control.task.get_qpos
    sim.BOX_POSE[0] = np.concatenate([cube, [1, 0, 0, 0]])
    control.reset()
    for action in actions:
        _, reward, _, _ = control.step(np.asarray(action, np.float64))
    qpos = control.task.get_qpos(control.physics)
    control.close()
    return reward, qpos


def test_expert_succeeds_and_gym_aloha_agrees(environment: CubeTransfer) -> None:
    for attempt in range(4):
        start = draw_start(100, attempt)
        actions, reason = attempt_transfer(environment, start)
        assert reason is None
        assert actions.shape == (400, ACTION_DIM) and actions.dtype == np.float32
        assert actions[:, [6, 13]].min() >= 0 and actions[:, [6, 13]].max() <= 1
        assert np.abs(np.diff(actions, axis=0)).max() < 0.1
        assert np.abs(actions[:, [3, 10]]).max() < 0.3  # the forearms do not spin: one way to the goal, not two
        reward, qpos = gym_aloha_outcome(actions, start.cube)
        assert reward == 4
        assert np.array_equal(qpos, environment.qpos())


def test_an_expert_that_misjudges_the_cube_fails(environment: CubeTransfer) -> None:
    reasons = [attempt_transfer(environment, draw_start(0, attempt, 0.05))[1] for attempt in range(6)]
    assert any(reasons)


def test_start_pose_is_the_expert_s_home(environment: CubeTransfer) -> None:
    environment.reset(np.array([0.1, 0.5, 0.05]))
    action = environment.solve(Targets(HOME_LEFT, HOME_RIGHT, 0.1, 0.1))
    assert environment.qpos() == pytest.approx(action, abs=0.01)
    assert environment.cube() == pytest.approx([0.1, 0.5, 0.05])
    assert environment.reward() == 0 and not environment.contacts().table


def test_solution_puts_the_gripper_where_asked(environment: CubeTransfer) -> None:
    environment.reset(np.array([0.1, 0.5, 0.05]))
    goal = Pose(np.array([-0.15, 0.52, 0.22]), LEFT_ROTATION)
    for _ in range(150):
        environment.step(environment.solve(Targets(goal, HOME_RIGHT, 0.5, 0.1)))
    reached = environment.physics.named.data.xpos["vx300s_left/gripper_link"]
    assert reached == pytest.approx(goal.position, abs=0.005)
    assert environment.qpos()[6] == pytest.approx(0.5, abs=0.05)  # the rolled finger sags by 1.7 mm


def test_targets_out_of_reach_are_refused(environment: CubeTransfer) -> None:
    environment.reset(np.array([0.1, 0.5, 0.05]))
    with pytest.raises(OutOfReachError, match=r"missed by"):
        environment.solve(Targets(Pose(np.array([2.0, 0.5, 0.3]), LEFT_ROTATION), HOME_RIGHT, 0.5, 0.1))


def test_rate_must_divide_that_of_the_physics() -> None:
    with pytest.raises(UserError, match="fps=33 does not fit: the physics run at 500"):
        CubeTransfer(33)


def test_recorded_episode_shows_the_cube_and_replays(tmp_path: Path) -> None:
    report = record(RecordConfig(output=tmp_path / "set", episodes=1, height=48, width=64, fps=10))
    assert report.kept == 1
    with h5py.File(tmp_path / "set" / "episode_0.hdf5") as file:
        images = file["observations/images/top"][()].astype(int)
        qpos, actions = file["observations/qpos"][()], file["action"][()]
        cube = file.attrs["cube_position"]
    assert images.shape == (80, 48, 64, 3)
    red = (images[..., 0] > 100) & (images[..., 1] < 60) & (images[..., 2] < 60)
    columns = [np.nonzero(picture)[1].mean() for picture in red[[0, -1]]]
    assert columns[1] < columns[0]  # the cube ends further left than it began
    with CubeTransfer(10) as again:
        again.reset(cube)
        for step, action in enumerate(actions):
            assert np.array_equal(again.qpos(), qpos[step])
            again.step(action)
        assert again.reward() == 4 and again.contacts().handed_over
