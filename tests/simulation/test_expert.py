"""The expert's waypoints, without a simulator: where the grippers are when, for any cube of gym-aloha's square."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vla_ft.simulation.expert import (
    CUBE_HALF,
    CUBE_RANGE,
    DURATION,
    HOME_LEFT,
    HOME_RIGHT,
    LEFT_REACH,
    MEETING,
    OPEN,
    RIGHT_REACH,
    Keyframe,
    plan_transfer,
)
from vla_ft.simulation.geometry import Pose, rotation_between, rotation_matrix

CORNERS = [np.array([x, y, 0.05]) for x, y in itertools.product(*CUBE_RANGE)]
CUBES = [*CORNERS, np.array([0.1, 0.5, 0.05])]
TIMES = np.arange(0, DURATION + 1e-9, 0.02)


def held(pose: Pose, reach: float) -> np.ndarray:
    """Where the centre of a cube is that this gripper holds."""
    return pose.position + reach * pose.forward


def closing(keyframes: tuple[Keyframe, ...]) -> tuple[float, float]:
    """Seconds at which the gripper begins to close on the cube and to open again (the end if it does not)."""
    start = next(a.time for a, b in itertools.pairwise(keyframes) if b.gripper < a.gripper)
    opening = [a.time for a, b in itertools.pairwise(keyframes) if a.time > start and b.gripper > a.gripper]
    return start, opening[0] if opening else DURATION


@pytest.mark.parametrize("cube", CUBES, ids=str)
def test_right_gripper_closes_around_the_lying_cube(cube: np.ndarray) -> None:
    plan = plan_transfer(cube)
    start, _ = closing(plan.right)
    targets = plan.at(start)
    assert held(targets.right, RIGHT_REACH) == pytest.approx([cube[0], cube[1], CUBE_HALF])
    assert targets.right_gripper == OPEN
    # Its fingers close along the world's y, square to the cube's faces.
    assert rotation_matrix(targets.right.rotation)[:, 1] == pytest.approx([0, -1, 0], abs=1e-12)


@pytest.mark.parametrize("cube", CUBES, ids=str)
def test_it_comes_from_above_and_lifts_straight(cube: np.ndarray) -> None:
    plan = plan_transfer(cube)
    start, _ = closing(plan.right)
    moving = [plan.at(t).right.position for t in np.arange(start - 0.8, start, 0.02)]
    assert np.ptp([p[:2] for p in moving], axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert (np.diff([p[2] for p in moving]) <= 0).all() and moving[0][2] - moving[-1][2] > 0.05


@pytest.mark.parametrize("cube", CUBES, ids=str)
def test_both_hold_the_cube_at_the_meeting_point_before_the_right_lets_go(cube: np.ndarray) -> None:
    plan = plan_transfer(cube)
    left_closes, left_opens = closing(plan.left)
    _, right_opens = closing(plan.right)
    assert left_closes + 0.5 <= right_opens and left_opens == DURATION
    for time in np.arange(left_closes, right_opens + 0.01, 0.02):
        targets = plan.at(time)
        assert held(targets.left, LEFT_REACH) == pytest.approx(MEETING)
        assert held(targets.right, RIGHT_REACH) == pytest.approx(MEETING)
    # The left one grips the level faces that the right one leaves free.
    left_fingers = rotation_matrix(plan.at(left_closes).left.rotation)[:, 1]
    assert np.abs(left_fingers) == pytest.approx([0, 0, 1], abs=1e-12)


def test_cube_keeps_its_attitude_while_carried() -> None:
    plan = plan_transfer(CUBES[0])
    start, end = closing(plan.right)
    turns = [rotation_between(plan.at(start).right.rotation, plan.at(t).right.rotation) for t in np.arange(start, end)]
    assert np.abs(turns).max() < 1e-9


@pytest.mark.parametrize("cube", CUBES, ids=str)
def test_motion_is_smooth_and_begins_at_home(cube: np.ndarray) -> None:
    plan = plan_transfer(cube)
    track = [plan.at(t) for t in TIMES]
    assert track[0].left == HOME_LEFT and track[0].right == HOME_RIGHT
    for arm in ("left", "right"):
        positions = np.array([getattr(t, arm).position for t in track])
        speed = np.linalg.norm(np.diff(positions, axis=0), axis=1) / 0.02
        acceleration = np.linalg.norm(np.diff(positions, 2, axis=0), axis=1) / 0.02**2
        assert 0.1 < speed.max() < 0.7 and acceleration.max() < 2.0
        openings = np.array([getattr(t, f"{arm}_gripper") for t in track])
        assert openings.min() >= 0 and openings.max() <= 1
        assert np.abs(np.diff(openings)).max() < 0.1


def test_arms_stand_still_outside_the_plan() -> None:
    plan = plan_transfer(CUBES[0])
    assert plan.at(-1.0) == plan.at(0.0)
    assert plan.at(DURATION + 5) == plan.at(plan.right[-1].time + 3)


def test_plan_follows_the_cube_only_until_the_lift() -> None:
    near, far = plan_transfer(CORNERS[0]), plan_transfer(CORNERS[-1])
    start, _ = closing(near.right)
    offset = far.at(start).right.position - near.at(start).right.position
    assert offset == pytest.approx(CORNERS[-1] - CORNERS[0])
    assert [k.pose.position.tolist() for k in near.left] == [k.pose.position.tolist() for k in far.left]
