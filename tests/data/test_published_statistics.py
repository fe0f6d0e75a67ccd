"""The JSON shapes of published statistics, both ways."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vla_ft.data.published_statistics import action_mask, from_octo, from_openvla, to_octo, to_openvla
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.standardize.base import ACTION_NAMES, ACTION_UNITS, POSE_EULER
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.errors import UserError

NAMES = {"action": ACTION_NAMES, "proprio": POSE_EULER}
DESCRIPTION = DatasetDescription(
    name="bridge",
    cameras={},
    action_names=ACTION_NAMES,
    action_units=ACTION_UNITS,
    proprio_names=POSE_EULER,
    proprio_units=ACTION_UNITS,
    action_kind="end_effector",
    action_mode="delta",
    gripper="",
    gripper_dims=(6,),
    fps=5,
)


def made(seed: int) -> DatasetStatistics:
    rng = np.random.default_rng(seed)
    features = {}
    for name, dimensions in NAMES.items():
        numbers = {k: rng.normal(size=7).astype(np.float32) for k in ("mean", "std", "min", "max", "q01", "q99")}
        features[name] = FeatureStatistics(**numbers, count=321, names=dimensions)
    return DatasetStatistics(features=features, source_hash=str(seed), episodes=12)


def same(first: DatasetStatistics, second: DatasetStatistics) -> None:
    assert first.episodes == second.episodes
    for feature, dimensions in NAMES.items():
        assert (first[feature].count, first[feature].names) == (second[feature].count, dimensions)
        for key in ("mean", "std", "min", "max", "q01", "q99"):
            assert np.array_equal(getattr(first[feature], key), getattr(second[feature], key)), key


def test_openvla_of_one_dataset_and_of_a_mixture() -> None:
    data = json.loads(json.dumps(to_openvla(made(0), {"bridge": DESCRIPTION})))
    assert set(data["bridge"]) == {"action", "proprio", "num_transitions", "num_trajectories"}
    assert data["bridge"]["num_transitions"] == 321
    assert data["bridge"]["num_trajectories"] == 12
    assert data["bridge"]["action"]["mask"] == [True] * 6 + [False]
    assert action_mask(data["bridge"]).tolist() == [True] * 6 + [False]
    same(from_openvla(data, NAMES), made(0))

    mixture = DatasetStatistics(features={}, source_hash="m", episodes=24, parts={"a": made(1), "b": made(2)})
    back = from_openvla(to_openvla(mixture, {"a": DESCRIPTION, "b": DESCRIPTION}), NAMES)
    assert back.episodes == 24
    for name in ("a", "b"):
        same(back.of(name), mixture.of(name))


def test_octo() -> None:
    data = json.loads(json.dumps(to_octo(made(3))))
    assert {"p01", "p99"} < set(data["action"])
    assert action_mask(data).all(), "no mask is all of them"
    same(from_octo(data, NAMES), made(3))


def test_other_shapes_are_refused() -> None:
    data = to_octo(made(0))
    with pytest.raises(UserError, match=r"holds no statistics of the expected shape \(KeyError: 'q01'\)"):
        from_openvla({"bridge": data}, NAMES)
    with pytest.raises(UserError, match="have 7 action dimensions, expected 2: x, y"):
        from_octo(data, {"action": ("x", "y")})
