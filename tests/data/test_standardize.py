"""Standardisation: each published dataset from columns of its own layout, gripper rules, rotations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.mixes import MIXES
from vla_ft.data.opening import MixEntry, find_mix
from vla_ft.data.standardize import STANDARDIZATIONS, find_standardization
from vla_ft.data.standardize.gripper import absolute_from_relative, binarized, inverted
from vla_ft.data.standardize.rotations import (
    euler_from_matrix,
    euler_from_quaternion,
    matrix_from_euler,
    matrix_from_quaternion,
    quaternion_from_euler,
)
from vla_ft.errors import UserError

STEPS = 6
# Width of every raw column that some standardisation reads, as published; 0 is a scalar a step.
COMMON = {"action/world_vector": 3, "action/rotation_delta": 3}
WIDTHS: dict[str, dict[str, int]] = {
    "bridge_orig": {"action": 7, "observation/state": 7},
    "bridge_dataset": {"action": 7, "observation/state": 7},
    "bridge_oxe": {**COMMON, "action/open_gripper": 0, "observation/state": 7},
    "custom_finetuning": {"action": 7},
    "fractal20220817_data": {
        **COMMON,
        "action/gripper_closedness_action": 1,
        "observation/base_pose_tool_reached": 7,
        "observation/gripper_closed": 1,
    },
    "kuka": {
        **COMMON,
        "action/gripper_closedness_action": 1,
        "observation/clip_function_input/base_pose_tool_reached": 7,
        "observation/gripper_closed": 1,
    },
    "taco_play": {"action/rel_actions_world": 7, "observation/robot_obs": 15},
    "jaco_play": {
        "action/world_vector": 3,
        "action/gripper_closedness_action": 1,
        "observation/end_effector_cartesian_pos": 7,
    },
    "berkeley_cable_routing": {**COMMON, "observation/robot_state": 7},
    "roboturk": {**COMMON, "action/gripper_closedness_action": 1},
    "nyu_door_opening_surprising_effectiveness": {**COMMON, "action/gripper_closedness_action": 1},
    "viola": {
        **COMMON,
        "action/gripper_closedness_action": 0,
        "observation/joint_states": 7,
        "observation/gripper_states": 1,
    },
    "berkeley_autolab_ur5": {**COMMON, "action/gripper_closedness_action": 0, "observation/robot_state": 15},
    "toto": {**COMMON, "action/open_gripper": 0, "observation/state": 7},
    "language_table": {"action": 2, "observation/effector_translation": 2},
    "bc_z": {
        "action/future/xyz_residual": 30,
        "action/future/axis_angle_residual": 30,
        "action/future/target_close": 10,
        "observation/present/xyz": 3,
        "observation/present/axis_angle": 3,
        "observation/present/sensed_close": 1,
    },
    "stanford_hydra_dataset_converted_externally_to_rlds": {"action": 7, "observation/state": 27},
    "austin_buds_dataset_converted_externally_to_rlds": {"action": 7, "observation/state": 24},
    "nyu_franka_play_dataset_converted_externally_to_rlds": {"action": 15, "observation/state": 13},
    "furniture_bench_dataset_converted_externally_to_rlds": {"action": 8, "observation/state": 35},
    "ucsd_kitchen_dataset_converted_externally_to_rlds": {"action": 8, "observation/state": 21},
    "austin_sailor_dataset_converted_externally_to_rlds": {"action": 7, "observation/state": 8},
    "austin_sirius_dataset_converted_externally_to_rlds": {"action": 7, "observation/state": 8},
    "dlr_edan_shared_control_converted_externally_to_rlds": {"action": 7, "observation/state": 7},
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": {"action": 8, "observation/state": 20},
    "utaustin_mutex": {"action": 7, "observation/state": 24},
    "berkeley_fanuc_manipulation": {"action": 6, "observation/state": 13},
    "cmu_stretch": {"action": 8, "observation/state": 4},
    "fmb_dataset": {"action": 7, "observation/eef_pose": 7, "observation/state_gripper_pose": 0},
    "dobbe": {"action": 7, "observation/state": 7},
}


def raw_columns(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(-1, 1, size=(STEPS, width) if width else STEPS).astype(np.float32)
        for key, width in WIDTHS[name].items()
    }


def standard(name: str, raw: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    return find_standardization(name).numbers(raw)


@pytest.mark.parametrize("name", sorted(STANDARDIZATIONS))
def test_every_dataset_gives_the_declared_shapes_and_reads_what_it_declares(name: str) -> None:
    wanted = find_standardization(name)
    assert set(wanted.columns) == set(WIDTHS[name]), "this test's layout is not the standardisation's"
    raw = raw_columns(name)
    before = {key: value.copy() for key, value in raw.items()}
    action, proprio = wanted.numbers(raw)
    length = wanted.length(STEPS)
    assert (action.shape, action.dtype) == ((length, 7), np.float32)
    if wanted.proprio:
        assert proprio is not None
        assert (proprio.shape, proprio.dtype) == ((length, len(wanted.proprio)), np.float32)
    else:
        assert proprio is None
    assert len(wanted.proprio_units) == len(wanted.proprio)
    assert all(np.array_equal(raw[key], before[key]) for key in raw), "it changed what it was given"
    assert wanted.images
    assert wanted.fps > 0


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_every_published_mix_can_be_read(mix: str) -> None:
    entries = find_mix(mix)
    assert set(entries) <= set(STANDARDIZATIONS)
    assert all(entry.weight > 0 for entry in entries.values())


def test_the_mix_of_cogact_has_the_listed_weights() -> None:
    mix = {name: entry.weight for name, entry in find_mix("oxe_magic_soup_plus_minus").items()}
    assert len(mix) == 25
    assert mix["fractal20220817_data"] == mix["bridge_orig"] == mix["fmb_dataset"] == 1
    assert mix["kuka"] == 0.8341046294
    assert (mix["bc_z"], mix["dobbe"]) == (0.2, 0.2)
    assert mix["nyu_franka_play_dataset_converted_externally_to_rlds"] == 3
    assert "language_table" not in mix


def test_a_dataset_alone_is_a_mix_and_other_names_are_refused() -> None:
    assert find_mix("taco_play") == {"taco_play": MixEntry()}
    with pytest.raises(UserError, match=r"Unknown mix 'oxe_simpel'\. Did you mean 'oxe_simple'"):
        find_mix("oxe_simpel")
    with pytest.raises(UserError, match="names no dataset"):
        find_mix({})
    with pytest.raises(UserError, match="Unknown standardisation 'bridge_origin'"):
        find_standardization("bridge_origin")


def test_bridge_moves_as_the_arm_did_and_the_first_zero_action_goes() -> None:
    raw = raw_columns("bridge_orig")
    raw["action"][:, 6] = [0.5, 1, 1, 0.5, 0, 0]
    action, proprio = standard("bridge_orig", raw)
    state = raw["observation/state"]
    np.testing.assert_array_equal(action[:, :6], state[2:, :6] - state[1:-1, :6])
    assert action[:, 6].tolist() == [1, 1, 0, 0], "in between takes the next decided value"
    assert proprio is not None
    np.testing.assert_array_equal(proprio, state[1:-1])
    longer, _ = standard("bridge_dataset", raw)
    np.testing.assert_array_equal(longer[1:], action)


@pytest.mark.parametrize(
    ("name", "key", "column", "raw_value", "expected"),
    [
        ("roboturk", "action/gripper_closedness_action", 0, 1.0, 0.0),
        ("viola", "action/gripper_closedness_action", None, -1.0, 1.0),
        ("taco_play", "action/rel_actions_world", -1, 1.0, 1.0),
        ("taco_play", "action/rel_actions_world", -1, -1.0, 0.0),
        ("toto", "action/open_gripper", None, 1.0, 1.0),
        ("austin_buds_dataset_converted_externally_to_rlds", "action", -1, 1.0, 0.0),
        ("utaustin_mutex", "action", -1, -1.0, 1.0),
        ("stanford_hydra_dataset_converted_externally_to_rlds", "action", -1, 1.0, 0.0),
        ("nyu_franka_play_dataset_converted_externally_to_rlds", "action", -2, 1.0, 1.0),
        ("furniture_bench_dataset_converted_externally_to_rlds", "action", -1, 1.0, 0.0),
        ("ucsd_kitchen_dataset_converted_externally_to_rlds", "action", 6, 1.0, 1.0),
        ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", "action", 7, 1.0, 1.0),
        ("dlr_edan_shared_control_converted_externally_to_rlds", "action", -1, 0.0, 1.0),
        ("berkeley_fanuc_manipulation", "observation/state", 6, 1.0, 0.0),
        ("cmu_stretch", "action", 6, 1.0, 1.0),
        ("bc_z", "action/future/target_close", 0, 1.0, 0.0),
        ("fmb_dataset", "action", 6, 1.0, 1.0),
        ("dobbe", "action", 6, 0.0, 0.0),
    ],
)
def test_one_is_open_and_zero_is_closed(
    name: str, key: str, column: int | None, raw_value: float, expected: float
) -> None:
    raw = raw_columns(name)
    raw[key][(...,) if column is None else (..., column)] = raw_value
    assert (standard(name, raw)[0][:, 6] == expected).all()


def test_rotations_that_are_quaternions_become_angles() -> None:
    raw = raw_columns("furniture_bench_dataset_converted_externally_to_rlds")
    angles = np.random.default_rng(1).uniform(-1, 1, size=(STEPS, 3))
    raw["action"][:, 3:7] = quaternion_from_euler(angles)
    action, _ = standard("furniture_bench_dataset_converted_externally_to_rlds", raw)
    np.testing.assert_allclose(action[:, 3:6], angles, atol=1e-6)


numbers = st.lists(st.floats(-1.25, 1.25, width=32), min_size=0, max_size=20)


@settings(max_examples=200, deadline=None)
@given(numbers)
def test_binarising_is_the_published_scan(values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float32)
    expected = np.zeros(len(values), dtype=np.float32)
    carry = given_values[-1] if values else 0
    for step in reversed(range(len(values))):
        if given_values[step] > 0.95 or given_values[step] < 0.05:
            carry = float(given_values[step] > 0.95)
        expected[step] = carry
    np.testing.assert_array_equal(binarized(given_values), expected)


@settings(max_examples=200, deadline=None)
@given(numbers)
def test_absolute_commands_are_the_published_scan(values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float32)
    moves = [1 if v < -0.1 else -1 if v > 0.1 else 0 for v in given_values]
    state = next((-move for move in moves if move), 1)
    expected = []
    for move in moves:
        state = move or state
        expected.append((state + 1) / 2)
    np.testing.assert_array_equal(absolute_from_relative(given_values), np.array(expected, dtype=np.float32))


def test_inverting_twice_is_nothing() -> None:
    np.testing.assert_array_equal(inverted(inverted(np.array([0, 0.25, 1]))), [0, 0.25, 1])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_rotations_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = rng.uniform([-np.pi, -1.5, -np.pi], [np.pi, 1.5, np.pi], size=(4, 3))
    matrices = matrix_from_euler(angles)
    np.testing.assert_allclose(matrices @ matrices.swapaxes(-1, -2), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(euler_from_matrix(matrices), angles, atol=1e-9)
    quaternions = quaternion_from_euler(angles)
    np.testing.assert_allclose(matrix_from_quaternion(3 * quaternions), matrices, atol=1e-6)
    np.testing.assert_allclose(euler_from_quaternion(quaternions), angles, atol=5e-5)


def test_rotations_in_known_places() -> None:
    turned = matrix_from_euler(np.array([0, 0, np.pi / 2]))
    np.testing.assert_allclose(turned @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(quaternion_from_euler(np.array([np.pi / 2, 0, 0])), [np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
    straight_up = matrix_from_euler(np.array([0.3, np.pi / 2, -0.4]))
    back = euler_from_matrix(straight_up)
    assert back[2] == 0
    np.testing.assert_allclose(matrix_from_euler(back), straight_up, atol=1e-6)
