"""Episodes, statistics and samples equal those of the published ALOHA reader (tonyzhaozh/act, ``utils.py``)."""

from __future__ import annotations

from pathlib import Path

import golden_files
import numpy as np
import pytest
from golden_files import Golden

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.statistics import DatasetStatistics, compute_statistics
from vla_ft.data.windows import WindowSpec, build_sample

STD_FLOOR = 1e-2
"""The published code clips standard deviations from below at this."""
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
"""The published reader computes in float64; ours hands out float32."""
pytestmark = pytest.mark.golden_files("act/hdf5_*")


@pytest.fixture
def expected(golden_root: Path, golden_case: str) -> Golden:
    return golden_files.load(golden_root, f"{golden_case}_expected")


@pytest.fixture
def reader(golden_root: Path, golden_case: str, expected: Golden) -> AlohaHdf5Reader:
    return AlohaHdf5Reader(golden_root / golden_case, cameras=expected.facts["cameras"])


@pytest.fixture
def statistics(reader: AlohaHdf5Reader) -> DatasetStatistics:
    return compute_statistics(reader, range(len(reader.lengths)))


def normalise(values: np.ndarray, statistics: DatasetStatistics, feature: str) -> np.ndarray:
    of = statistics[feature]
    return (values - of.mean) / np.maximum(of.unbiased_std, STD_FLOOR)


def test_set_is_described(reader: AlohaHdf5Reader, expected: Golden) -> None:
    assert len(reader.lengths) == expected.facts["episodes"]
    assert set(reader.lengths) == {expected.facts["steps"]}
    assert list(reader.description.cameras) == expected.facts["cameras"]
    assert reader.action_offset == (0 if expected.facts["sim"] else -1)


@pytest.mark.parametrize(("feature", "published"), [("action", "action"), ("proprio", "qpos")])
def test_statistics(statistics: DatasetStatistics, expected: Golden, feature: str, published: str) -> None:
    np.testing.assert_allclose(statistics[feature].mean, expected[f"stats.{published}_mean"].numpy(), **TOLERANCE)
    floored = np.maximum(statistics[feature].unbiased_std, STD_FLOOR)
    np.testing.assert_allclose(floored, expected[f"stats.{published}_std"].numpy(), **TOLERANCE)


def test_raw_qpos_of_an_episode(reader: AlohaHdf5Reader, expected: Golden) -> None:
    example = expected["stats.example_qpos"].numpy().astype(np.float32)
    episodes = [reader.read(e, np.arange(n), ["proprio"])["proprio"] for e, n in enumerate(reader.lengths)]
    assert any(np.array_equal(values, example) for values in episodes)


def test_samples(reader: AlohaHdf5Reader, statistics: DatasetStatistics, expected: Golden) -> None:
    cameras = expected.facts["cameras"]
    keys = ("proprio", *(f"image_{camera}" for camera in cameras))
    window = WindowSpec(action_horizon=expected.facts["steps"])
    for number, place in enumerate(expected.facts["samples"]):
        sample = build_sample(reader, place["episode"], place["start_ts"], window, keys)
        name = f"s{number}"

        frames = np.stack([sample["observation"][f"image_{camera}"][0] for camera in cameras])
        published = expected[f"{name}.image"].numpy()
        np.testing.assert_array_equal(frames.transpose(0, 3, 1, 2), np.rint(published * 255).astype(np.uint8))
        qpos = normalise(sample["observation"]["proprio"][0], statistics, "proprio")
        np.testing.assert_allclose(qpos, expected[f"{name}.qpos"].numpy(), **TOLERANCE)

        # The published reader pads with zeros to the episode's length, ours repeats the last action; both mask it.
        real = ~expected[f"{name}.is_pad"].numpy()
        np.testing.assert_array_equal(sample["action_pad_mask"], real)
        actions = normalise(sample["action"], statistics, "action")
        np.testing.assert_allclose(actions[real], expected[f"{name}.action"].numpy()[real], **TOLERANCE)
        np.testing.assert_array_equal(sample["action"][~real], np.repeat(sample["action"][real][-1:], (~real).sum(), 0))
