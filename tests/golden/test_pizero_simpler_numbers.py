"""open-pi-zero's SIMPLER adapters: pictures, proprioception, un-normalising, rotations and grippers as published.

The numbers are its rules run over OpenCV and transforms3d. They lie with the code alone: ``pizero/simpler``.
"""

from __future__ import annotations

from pathlib import Path

import golden_files
import numpy as np
import pytest

from vla_ft.data.normalization import Bounds
from vla_ft.deployment.opencv_resize import lanczos4
from vla_ft.deployment.pizero_simpler import PIZERO_SETUPS, bridge_proprio, fractal_proprio
from vla_ft.deployment.simpler import axis_angle


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    golden = golden_files.load(Path(__file__).parent / "data", "pizero/simpler")
    return {name: tensor.numpy() for name, tensor in golden.tensors.items()}


@pytest.mark.parametrize(("name", "rows", "columns"), [("image_28", 48, 64), ("image_up", 20, 18)])
def test_pictures_are_resized_to_the_bit(numbers: dict[str, np.ndarray], name: str, rows: int, columns: int) -> None:
    np.testing.assert_array_equal(lanczos4(numbers["image"][:rows, :columns], (28, 28)), numbers[name])


def test_proprioception(numbers: dict[str, np.ndarray]) -> None:
    poses = numbers["eef_pos"].astype(np.float64)
    for convert, name in ((bridge_proprio, "bridge_proprio"), (fractal_proprio, "fractal_proprio")):
        got = np.stack([convert(pose) for pose in poses])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, numbers[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("robot", "name"), [("widowx_bridge", "bridge_actions"), ("google_robot", "fractal_actions")])
def test_chunks_become_the_simulators_actions(numbers: dict[str, np.ndarray], robot: str, name: str) -> None:
    bounds = Bounds(low=numbers["p01"], high=numbers["p99"], mask=np.arange(7) < 6)
    gripper = PIZERO_SETUPS[robot].gripper()
    got = [
        [[*action[:3], *axis_angle(*action[3:6]), gripper.step(action[6:]).item()] for action in chunk]
        for chunk in bounds.unnormalize(numbers["normalised"])
    ]
    np.testing.assert_allclose(got, numbers[name], atol=1e-6)
    commands = set(numbers["bridge_actions"][..., 6].ravel())
    assert commands == {-1.0, 1.0}, "the recorded actions open and close"
