"""Quaternions agree with matrices; blends keep their ends and move at constant speed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_ft.simulation.geometry import (
    Pose,
    axis_angle,
    blend,
    compose,
    ease,
    rotation_between,
    rotation_matrix,
)

UNIT = st.floats(-1, 1).filter(lambda v: abs(v) > 0.05)
ROTATION = st.builds(lambda x, y, z, angle: axis_angle((x, y, z), angle), UNIT, UNIT, UNIT, st.floats(-179, 179))


def test_quarter_turn_about_z_takes_x_to_y() -> None:
    assert rotation_matrix(axis_angle((0, 0, 1), 90)) @ [1, 0, 0] == pytest.approx([0, 1, 0])


@given(ROTATION, ROTATION)
def test_composition_is_the_product_of_matrices(first: np.ndarray, second: np.ndarray) -> None:
    product = rotation_matrix(first) @ rotation_matrix(second)
    assert rotation_matrix(compose(first, second)) == pytest.approx(product, abs=1e-12)
    assert product @ product.T == pytest.approx(np.eye(3), abs=1e-12)


@given(ROTATION, ROTATION)
def test_rotation_between_takes_one_to_the_other(start: np.ndarray, end: np.ndarray) -> None:
    turn = rotation_between(start, end)
    angle = np.linalg.norm(turn)
    assert angle <= np.pi + 1e-9
    applied = start if angle == 0 else compose(axis_angle(tuple(turn), np.degrees(angle)), start)
    assert rotation_matrix(applied) == pytest.approx(rotation_matrix(end), abs=1e-7)


@given(ROTATION, ROTATION, st.floats(0, 1))
def test_blend_covers_its_share_of_way_and_turn(start: np.ndarray, end: np.ndarray, share: float) -> None:
    first, last = Pose(np.zeros(3), start), Pose(np.array([1.0, -2.0, 3.0]), end)
    between = blend(first, last, share)
    assert between.position == pytest.approx(share * last.position)
    whole = np.linalg.norm(rotation_between(start, end))
    if whole < 3.1:  # at half a turn both ways round are equally short
        assert np.linalg.norm(rotation_between(start, between.rotation)) == pytest.approx(share * whole, abs=1e-6)


def test_ease_rests_at_both_ends() -> None:
    assert [ease(v) for v in (-1, 0, 0.5, 1, 2)] == pytest.approx([0, 0, 0.5, 1, 1])
    shares = [ease(v) for v in np.linspace(0, 1, 101)]
    speeds = np.diff(shares) * 100
    assert (speeds >= 0).all()
    assert speeds[0] < 0.01 and speeds[-1] < 0.01
    assert speeds.max() == pytest.approx(1.875, abs=1e-3)  # 15/8, the peak of a minimum-jerk move
