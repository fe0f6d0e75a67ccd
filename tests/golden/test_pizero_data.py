"""open-pi-zero's data pipeline: standardisation of Bridge and Fractal, normalisation, chunks and masks."""

from __future__ import annotations

from pathlib import Path

import golden_files
import numpy as np
import pytest

from vla_ft.data.formats.npz_writer import NpzWriter
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.normalization import Bounds, MeanStd
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.standardize.bridge import bridge_dataset
from vla_ft.data.standardize.gripper import absolute_from_relative, binarized
from vla_ft.data.standardize.rtx import fractal
from vla_ft.data.windows import WindowSpec, build_sample
from vla_ft.policies.pizero.octo_batch import octo_batch_of


def column(golden: golden_files.Golden, name: str) -> np.ndarray:
    return golden[name].numpy()


@pytest.mark.golden_files("pizero/data")
def test_gripper_rules(golden: golden_files.Golden) -> None:
    assert np.array_equal(binarized(column(golden, "gripper.binarize_in")), column(golden, "gripper.binarize_out"))
    got = absolute_from_relative(column(golden, "gripper.rel_in"))
    assert np.array_equal(got, column(golden, "gripper.rel2abs_out"))


@pytest.mark.golden_files("pizero/data")
def test_bridge_and_fractal(golden: golden_files.Golden) -> None:
    raw = {"action": column(golden, "bridge.in_action"), "observation/state": column(golden, "bridge.in_state")}
    got = dict(zip(("action", "proprio"), bridge_dataset(raw), strict=True))
    for key, value in got.items():
        assert np.array_equal(value, column(golden, f"bridge.out_{key}")), key

    raw = {
        "action/world_vector": column(golden, "fractal.in_world_vector"),
        "action/rotation_delta": column(golden, "fractal.in_rotation_delta"),
        "action/gripper_closedness_action": column(golden, "fractal.in_gripper_closedness_action"),
        "observation/base_pose_tool_reached": column(golden, "fractal.in_base_pose"),
        "observation/gripper_closed": column(golden, "fractal.in_gripper_closed"),
    }
    got = dict(zip(("action", "proprio"), fractal(raw), strict=True))
    for key, value in got.items():
        assert np.array_equal(value, column(golden, f"fractal.out_{key}")), key


@pytest.mark.golden_files("pizero/data")
@pytest.mark.parametrize("trajectory", ["traj0", "traj1"])
def test_normalisation(golden: golden_files.Golden, trajectory: str) -> None:
    for feature in ("action", "proprio"):
        stats = {key: np.array(value, dtype=np.float32) for key, value in golden.facts["stats"][feature].items()}
        mask = np.array(golden.facts["action_normalization_mask"]) if feature == "action" else None
        raw = column(golden, f"{trajectory}.raw.{feature}")
        forms = {
            "bounds": Bounds(low=stats["p01"], high=stats["p99"], mask=mask),
            "normal": MeanStd(mean=stats["mean"], scale=stats["std"], epsilon=1e-8, mask=mask),
        }
        for name, form in forms.items():
            expected = column(golden, f"{trajectory}.norm_{name}.{feature}")
            np.testing.assert_allclose(form.normalize(raw), expected, rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.golden_files("pizero/data")
@pytest.mark.parametrize(("trajectory", "number"), [("traj0", 0), ("traj1", 1)])
def test_chunks_and_masks(golden: golden_files.Golden, tmp_path: Path, trajectory: str, number: int) -> None:
    """The trajectory as an episode on disk, through our reader and windows, to the published batch."""
    length, horizon = golden.facts["lengths"][number], golden.facts["action_horizon"]
    raw = {feature: column(golden, f"{trajectory}.raw.{feature}") for feature in ("action", "proprio")}
    writer = NpzWriter(tmp_path / "set", _described(raw))
    picture = np.zeros((8, 8, 3), np.uint8)
    writer.add([{**{k: v[i] for k, v in raw.items()}, "image_primary": picture} for i in range(length)], "go")
    reader, window = open_dataset(writer.finish()), WindowSpec(observation_steps=1, action_horizon=horizon)
    keys = ("proprio", "image_primary")
    batch = octo_batch_of([build_sample(reader, 0, step, window, keys) for step in range(length)])
    prefix = f"{trajectory}.chunk."
    for name, got in {"action": batch["action"], "action_pad_mask": batch["action_pad_mask"]}.items():
        assert np.array_equal(got, column(golden, prefix + name).astype(got.dtype)), name
    for name in ("task_completed", "timestep", "timestep_pad_mask"):
        got = batch["observation"][name]
        assert np.array_equal(got, column(golden, f"{prefix}observation.{name}").astype(got.dtype)), name


def _described(raw: dict[str, np.ndarray]) -> DatasetDescription:
    names = {feature: tuple(f"{feature}_{i}" for i in range(value.shape[1])) for feature, value in raw.items()}
    return DatasetDescription(
        name="trajectory",
        cameras={"primary": (8, 8)},
        action_names=names["action"],
        action_units=("",) * len(names["action"]),
        proprio_names=names["proprio"],
        proprio_units=("",) * len(names["proprio"]),
        action_kind="end_effector",
        action_mode="delta",
        gripper="1 open, 0 closed",
        fps=5.0,
    )


def test_published_statistics_and_back(golden_root: Path) -> None:
    if not (golden_root / "pizero/parts.safetensors").is_file():
        pytest.skip("pizero/parts is not under this root")
    golden = golden_files.load(golden_root, "pizero/parts")
    for feature in ("action", "proprio"):
        part = {k.removeprefix(f"norm.{feature}."): v.numpy() for k, v in golden.tensors.items() if feature in k}
        stats = {key.removeprefix("stat."): value for key, value in part.items() if key.startswith("stat.")}
        bound = Bounds(low=stats["p01"], high=stats["p99"])
        gaussian = MeanStd(mean=stats["mean"], scale=stats["std"], epsilon=1e-8)
        for form, name in ((bound, "bound"), (gaussian, "gaussian")):
            np.testing.assert_allclose(form.normalize(part["raw"]), part[name], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(form.unnormalize(part[name]), part[f"denorm_{name}"], rtol=1e-5, atol=1e-6)
