"""The guide's npy sets: contents and statistics of both documented layouts, and the windows that its authors' own
reader takes from the raw layout that their writer leaves.
"""

from __future__ import annotations

from pathlib import Path

import golden_files
import numpy as np
import pytest
from golden_files import Golden

from vla_ft.data.formats.npy import NpyReader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.statistics import compute_statistics
from vla_ft.data.windows import WindowIndex, WindowSpec, build_sample

LAYOUTS = ("npy_array_of_dicts", "npy_dict_of_arrays")
KEYS = ("action", "proprio", "image_left", "image_right")
COLUMNS = dict(zip(KEYS, ("col.actions", "col.state", "col.image_left", "col.image_right"), strict=True))
EXACT = {"rtol": 2e-6, "atol": 1e-7}
"""The golden statistics are float64, ours are kept as float32."""


@pytest.fixture
def documented(golden_root: Path) -> Golden:
    return golden_files.load(golden_root, "act/npy_expected")


@pytest.fixture
def published(golden_root: Path) -> Golden:
    return golden_files.load(golden_root, "act/npy_legacy_raw_expected")


@pytest.fixture
def raw(golden_root: Path) -> NpyReader:
    reader = open_dataset(golden_root / "act" / "npy_legacy_raw")
    assert isinstance(reader, NpyReader)
    return reader


def whole(reader: NpyReader) -> dict[str, np.ndarray]:
    """All steps of all episodes, end to end."""
    parts = [reader.read(e, np.arange(n), KEYS) for e, n in enumerate(reader.lengths)]
    return {key: np.concatenate([part[key] for part in parts]) for key in KEYS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_value_of_both_layouts(golden_root: Path, documented: Golden, layout: str) -> None:
    reader = open_dataset(golden_root / "act" / layout, allow_pickle=True)
    assert reader.lengths.dtype == np.int64
    assert reader.lengths.tolist() == documented.facts["rollout_length"]
    assert reader.lengths.tolist() == documented["col.rollout_length"].tolist()
    height, width = documented.facts["image_hw"]
    assert reader.description.cameras == {"left": (height, width), "right": (height, width)}
    values = whole(reader)
    for key, name in COLUMNS.items():
        assert values[key].dtype == documented[name].numpy().dtype
        np.testing.assert_array_equal(values[key], documented[name].numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("feature", "name"), [("action", "action"), ("proprio", "state")])
def test_statistics(golden_root: Path, documented: Golden, layout: str, feature: str, name: str) -> None:
    reader = open_dataset(golden_root / "act" / layout, allow_pickle=True)
    found = compute_statistics(reader, range(len(reader.lengths)))[feature]
    for part, ours in (("mean", found.mean), ("std", found.std), ("std_unbiased", found.unbiased_std)):
        np.testing.assert_allclose(ours, documented[f"stats.{name}.{part}"].numpy(), **EXACT)
    for part, ours in (("min", found.min), ("max", found.max)):
        np.testing.assert_array_equal(ours, documented[f"stats.{name}.{part}"].numpy())
    assert found.constant == ((reader.description.action_names[9],) if feature == "action" else ())


def test_the_raw_layout_holds_the_same_data(raw: NpyReader, documented: Golden) -> None:
    values = whole(raw)
    for key, name in COLUMNS.items():
        np.testing.assert_array_equal(values[key], documented[name].numpy())
    assert any("3 allocated rows behind the last step" in line for line in raw.remarks())


def published_windows(reader: NpyReader, chunk: int) -> list[tuple[int, int]]:
    """(episode, step) of the windows that the authors' reader takes: it drops the last ``chunk - 1`` of each."""
    lengths = reader.lengths.tolist()
    return [(e, t) for e, n in enumerate(lengths) for t in range(max(0, n - chunk + 1))]


def test_windows_of_the_raw_layout(raw: NpyReader, published: Golden) -> None:
    facts, keys = published.facts, KEYS[1:]
    window = WindowSpec(observation_steps=facts["temporal_context"], action_horizon=facts["chunk_size"])
    places = published_windows(raw, facts["chunk_size"])
    assert len(places) == facts["window_count"]
    mean, std = published["relative_mean"].numpy(), published["relative_std"].numpy()
    for number in facts["selected"]:
        sample = build_sample(raw, *places[number], window, keys)
        assert sample["action_pad_mask"].all()
        np.testing.assert_array_equal(sample["action"], published[f"{number}.action_raw"].numpy())
        np.testing.assert_array_equal(sample["observation"]["proprio"], published[f"{number}.qpos"].numpy())
        pictures = np.stack([sample["observation"][f"image_{side}"] for side in ("left", "right")], axis=1)
        np.testing.assert_array_equal(pictures.astype(np.float32) / 255, published[f"{number}.visual"].numpy())
        relative = (sample["action"] - stay_still(sample["observation"]["proprio"][-1])) / std - mean / std
        wanted = published[f"{number}.action_relative_normalised"].numpy()
        np.testing.assert_allclose(relative, wanted, rtol=1e-5, atol=1e-6)


def stay_still(qpos: np.ndarray) -> np.ndarray:
    """The action that keeps a pose, [..., 14]: six joints and the first finger of each arm."""
    return np.concatenate([qpos[..., :7], qpos[..., 8:15]], axis=-1)


def test_relative_statistics_of_the_raw_layout(raw: NpyReader, published: Golden) -> None:
    """Over the used samples, with absolute grippers and the unbiased form, as the authors' script takes them."""
    values = whole(raw)
    relative = values["action"] - stay_still(values["proprio"])
    for gripper in (6, 13):
        relative[:, gripper] = values["action"][:, gripper]
    assert len(relative) == published.facts["sample_count"]
    np.testing.assert_allclose(relative.mean(axis=0), published["relative_mean"].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(relative.std(axis=0, ddof=1), published["relative_std"].numpy(), rtol=1e-5, atol=1e-6)


def test_ours_takes_every_step_and_pads(raw: NpyReader, published: Golden) -> None:
    """The episode of 4 steps, shorter than the chunk of 5, starts no window of the authors'; of ours it starts four."""
    chunk = published.facts["chunk_size"]
    index = WindowIndex(raw.lengths, np.arange(len(raw.lengths)))
    assert len(index) == published.facts["sample_count"] == 25
    assert 1 not in {episode for episode, _ in published_windows(raw, chunk)}
    actions = raw.read(1, np.arange(4), ("action",))["action"]
    for step in range(4):
        assert index.locate(9 + step) == (1, step)
        sample = build_sample(raw, 1, step, WindowSpec(action_horizon=chunk), ("proprio",))
        np.testing.assert_array_equal(sample["action_pad_mask"], np.arange(step, step + chunk) < 4)
        np.testing.assert_array_equal(sample["action"], actions[np.minimum(np.arange(step, step + chunk), 3)])


def test_lengths_of_two_bytes_do_not_wrap(raw: NpyReader, golden_root: Path) -> None:
    stored = np.load(golden_root / "act" / "npy_legacy_raw" / "rollout_length.npy")
    assert stored.dtype == np.uint16
    with np.errstate(over="ignore"):
        assert stored[1] - np.uint16(6) > 60_000, "this is what the authors' count does"
    assert (raw.lengths - 6).tolist() == [3, -2, 6]
