"""Starts are a function of seed and attempt; the verdict names the stage that failed."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ft.simulation.demonstration import CubeContacts, draw_start, judge
from vla_ft.simulation.expert import CUBE_RANGE

AIR, TABLE = CubeContacts(), CubeContacts(table=True)
PUSHED = CubeContacts(right=True, table=True)
LIFTED, BOTH, LEFT = CubeContacts(right=True), CubeContacts(left=True, right=True), CubeContacts(left=True)
GOOD = [AIR, TABLE, PUSHED, LIFTED, BOTH] + [LEFT] * 10
FPS = 50


@pytest.mark.parametrize(
    ("contacts", "reward", "reason"),
    [
        (GOOD, 4, None),
        (GOOD, 3, "gym-aloha's reward ended at 3"),
        ([AIR] + [TABLE] * 20, 0, "the cube was not touched"),
        ([AIR, TABLE, *[PUSHED] * 20], 1, "the cube was not lifted"),
        ([AIR, PUSHED, LIFTED, *[TABLE] * 20], 0, "the cube was not handed over"),
        ([AIR, PUSHED, LIFTED, *[BOTH] * 20], 4, "the right gripper did not let go"),
        ([*GOOD, *[TABLE] * 10], 0, "the cube was dropped"),
        ([*GOOD, TABLE], 0, "the cube was dropped"),
        ([AIR, LIFTED, *[PUSHED] * 20], 1, "the cube was not lifted"),  # touched while still falling
    ],
)
def test_verdict(contacts: list[CubeContacts], reward: int, reason: str | None) -> None:
    assert judge(contacts, reward, FPS) == reason


def test_a_short_hold_is_not_enough() -> None:
    assert judge(GOOD[:-1], 4, FPS) is not None
    assert judge(GOOD, 4, 25) is None  # 0.2 s are 5 steps at 25 fps


def test_starts_depend_on_seed_and_attempt_alone() -> None:
    assert np.array_equal(draw_start(3, 7).cube, draw_start(3, 7).cube)
    cubes = np.array([draw_start(seed, attempt).cube for seed in range(10) for attempt in range(100)])
    assert len(np.unique(cubes[:, 0])) == 1000
    for axis, (low, high) in enumerate(CUBE_RANGE):
        assert low <= cubes[:, axis].min() < low + 0.01 and high - 0.01 < cubes[:, axis].max() <= high
        assert cubes[:, axis].mean() == pytest.approx((low + high) / 2, abs=0.01)


def test_noise_moves_the_belief_and_not_the_cube() -> None:
    exact, noisy = (draw_start(0, 5, noise) for noise in (0.0, 0.01))
    assert np.array_equal(exact.cube, noisy.cube) and np.array_equal(exact.cube, exact.believed)
    misses = np.array([draw_start(0, a, 0.01).believed - draw_start(0, a).cube for a in range(500)])
    assert misses[:, :2].std(axis=0) == pytest.approx([0.01, 0.01], rel=0.1)
    assert not misses[:, 2].any()
