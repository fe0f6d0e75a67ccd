"""CogACT's data pipeline: gripper rules, Bridge relabelling, quantile normalisation, chunks with neutral steps."""

from __future__ import annotations

from pathlib import Path

import golden_files
import numpy as np
import pytest

from vla_ft.data.chunks import mask_with_slack, neutral_padding
from vla_ft.data.normalization import Bounds
from vla_ft.data.standardize.bridge import relabeled
from vla_ft.data.standardize.gripper import absolute_from_relative, binarized, inverted


def bounds(golden: golden_files.Golden) -> Bounds:
    stats = {key.removeprefix("in/stats."): value.numpy() for key, value in golden.tensors.items() if "stats." in key}
    return Bounds(
        low=stats["q01"], high=stats["q99"], mask=stats["mask"].astype(bool), zero=stats["min"] == stats["max"]
    )


@pytest.mark.golden_files("cogact/data_transforms")
def test_gripper_rules_and_relabelling(golden: golden_files.Golden) -> None:
    for name, rule, given in (
        ("binarized", binarized, "gripper_continuous"),
        ("inverted", inverted, "gripper_continuous"),
        ("absolute", absolute_from_relative, "gripper_relative"),
    ):
        assert np.array_equal(rule(golden[f"in/{given}"].numpy()), golden[f"out/gripper_{name}"].numpy()), name
    got = relabeled(golden["in/action"].numpy(), golden["in/bridge_state"].numpy())
    assert np.array_equal(got, golden["out/bridge_action"].numpy())


@pytest.mark.golden_files("cogact/data_transforms")
def test_normalisation(golden: golden_files.Golden) -> None:
    got = bounds(golden).normalize(golden["in/action"].numpy())
    np.testing.assert_allclose(got, golden["out/normalized"].numpy(), atol=1e-6)
    assert (got[:, 2] == 0).all(), "the constant dimension is exactly 0"


@pytest.mark.golden_files("cogact/data_transforms")
def test_chunks_end_in_neutral_steps(golden: golden_files.Golden) -> None:
    form = bounds(golden)
    actions, length = golden["in/action"].numpy(), golden.facts["traj_len"]
    steps = np.arange(length)[:, None] + np.arange(golden.facts["future_action_window_size"] + 1)
    real = steps < length
    chunks = form.normalize(actions[np.minimum(steps, length - 1)])
    absolute = np.arange(golden.facts["action_dim"]) == 6
    got = neutral_padding(chunks, real, form, absolute)
    np.testing.assert_allclose(got, golden["out/chunk_action"].numpy(), atol=1e-6)
    assert np.array_equal(mask_with_slack(real), golden["out/chunk_action_mask"].numpy().astype(bool))
    assert np.array_equal(golden["out/chunk_timestep"].numpy()[:, 0], np.arange(length))
    assert golden["out/chunk_pad_mask"].numpy().all(), "a window of one step has nothing to pad"


def test_unnormalising_as_predict_action_does(golden_root: Path) -> None:
    if not (golden_root / "cogact/unnorm_ensemble.safetensors").is_file():
        pytest.skip("cogact/unnorm_ensemble is not under this root")
    golden = golden_files.load(golden_root, "cogact/unnorm_ensemble")
    stats = golden.facts["action_stats"]
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    masked = Bounds(low=low, high=high, mask=np.array(stats["mask"]))
    normalized = golden["out/normalized"].numpy()
    np.testing.assert_allclose(masked.unnormalize(normalized), golden["out/actions"].numpy(), atol=1e-6)
    everything = Bounds(low=low, high=high)
    np.testing.assert_allclose(everything.unnormalize(normalized), golden["out/actions_no_mask"].numpy(), atol=1e-6)
