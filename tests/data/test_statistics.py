"""Statistics: numbers against NumPy, exact round trip, names, cache, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from any_format import write_set
from episode_sets import SetOnDisk
from lerobot_sets import edit_json

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.statistics import DatasetStatistics, cached_statistics, compute_statistics, statistics_cache
from vla_ft.errors import UserError


def test_numbers_over_chosen_episodes(aloha_set: SetOnDisk) -> None:
    statistics = compute_statistics(AlohaHdf5Reader(aloha_set.folder), [0, 2])
    for feature, column in (("action", "action"), ("proprio", "qpos")):
        values = np.concatenate([aloha_set.episodes[e][column] for e in (0, 2)])
        got = statistics[feature]
        assert got.count == 12
        for name, expected in {
            "mean": values.mean(0),
            "std": values.std(0),
            "unbiased_std": values.std(0, ddof=1),
            "min": values.min(0),
            "max": values.max(0),
            "q01": np.quantile(values, 0.01, axis=0),
            "q99": np.quantile(values, 0.99, axis=0),
        }.items():
            assert getattr(got, name).dtype == np.float32
            np.testing.assert_allclose(getattr(got, name), expected, rtol=1e-5, atol=1e-6)


def test_constant_dimensions_are_named(aloha_set: SetOnDisk, tmp_path: Path) -> None:
    for path in aloha_set.folder.iterdir():
        with h5py.File(path, "r+") as file:
            file["action"][:, 6] = 0.3
            file["action"][:, 9] = 0
    statistics = compute_statistics(AlohaHdf5Reader(aloha_set.folder), [0, 1, 2])
    assert statistics["action"].constant == ("left_gripper", "right_elbow")
    assert statistics["proprio"].constant == ()
    statistics.save(tmp_path / "statistics.json")
    assert json.loads((tmp_path / "statistics.json").read_text())["features"]["action"]["constant"] == [
        "left_gripper",
        "right_elbow",
    ]


def test_the_round_trip_is_exact(aloha_set: SetOnDisk, tmp_path: Path) -> None:
    statistics = compute_statistics(AlohaHdf5Reader(aloha_set.folder), [0, 1])
    path = tmp_path / "statistics.json"
    statistics.save(path)
    loaded = DatasetStatistics.load(path)
    assert loaded.source_hash == statistics.source_hash
    for feature in ("action", "proprio"):
        for name in ("mean", "std", "min", "max", "q01", "q99"):
            assert np.array_equal(getattr(loaded[feature], name), getattr(statistics[feature], name))
        assert (loaded[feature].count, loaded[feature].names) == (14, statistics[feature].names)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["statistics.json"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_found(aloha_set: SetOnDisk, value: float) -> None:
    with h5py.File(aloha_set.folder / "episode_1.hdf5", "r+") as file:
        file["action"][4, 7] = value
        file["action"][6, 7] = value
    reader = AlohaHdf5Reader(aloha_set.folder)
    message = rf"episode_1\.hdf5: action 'right_waist' at step 4 is {value}, .*\(2 such values"
    with pytest.raises(UserError, match=message):
        compute_statistics(reader, [0, 1])
    compute_statistics(reader, [0, 2])


def test_no_episodes_and_no_file_are_refused(aloha_set: SetOnDisk, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No episodes"):
        compute_statistics(AlohaHdf5Reader(aloha_set.folder), [])
    path = tmp_path / "statistics.json"
    with pytest.raises(UserError, match="cannot be un-normalised"):
        DatasetStatistics.load(path)
    for damage in ("", "{}", "[]", '{"features": {"action": {}}, "source_hash": ""}'):
        path.write_text(damage)
        with pytest.raises(UserError, match="holds no statistics"):
            DatasetStatistics.load(path)
    with pytest.raises(UserError, match="Cannot write statistics"):
        compute_statistics(AlohaHdf5Reader(aloha_set.folder), [0]).save(tmp_path / "nowhere" / "statistics.json")


def test_cache_is_used_for_the_same_source_alone(
    aloha_set: SetOnDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "statistics.json"
    computed = []
    original = compute_statistics
    monkeypatch.setattr(
        "vla_ft.data.statistics.compute_statistics", lambda r, e: computed.append(list(e)) or original(r, e)
    )

    def mean(*episodes: int) -> float:
        return float(cached_statistics(AlohaHdf5Reader(aloha_set.folder), episodes, path)["action"].mean[0])

    first = mean(0, 1)
    assert mean(0, 1) == first
    assert computed == [[0, 1]]
    assert mean(0, 2) != first
    with h5py.File(aloha_set.folder / "episode_0.hdf5", "r+") as file:
        file["action"][0, 0] += 1
    assert mean(0, 2) != first
    assert computed == [[0, 1], [0, 2], [0, 2]]
    path.write_text("damaged")
    mean(0, 2)
    path.unlink()  # another run folder
    mean(0, 2)
    assert len(computed) == 3, "it was computed once for this data: the cache of all runs has it"
    assert path.is_file()
    for place in statistics_cache().iterdir():
        place.write_text("damaged")
    path.unlink()
    mean(0, 2)
    assert len(computed) == 4


def test_where_statistics_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_FT_CACHE", "/somewhere")
    assert statistics_cache() == Path("/somewhere/statistics")
    monkeypatch.delenv("VLA_FT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert statistics_cache() == Path("/caches/vla_ft/statistics")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert statistics_cache() == Path.home() / ".cache/vla_ft/statistics"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert "~" not in str(statistics_cache()), "a user without a home gets a folder of his own elsewhere"


def test_a_cache_that_cannot_be_written_does_not_matter(
    aloha_set: SetOnDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLA_FT_CACHE", str(tmp_path / "file"))
    made = cached_statistics(AlohaHdf5Reader(aloha_set.folder), [0, 1], tmp_path / "statistics.json")
    assert made.episodes == 2
    assert DatasetStatistics.load(tmp_path / "statistics.json").source_hash == made.source_hash


def test_names_are_those_of_now(tmp_path: Path) -> None:
    """They are no part of the numbers that the cache goes by."""
    path = write_set(tmp_path / "set", "npz")
    cached_statistics(open_dataset(path), [0, 1], tmp_path / "run.json")
    edit_json(path / "dataset.json", lambda content: content["description"].update(action_names=["u", "v", "w"]))
    for place in ("run.json", "other_run.json"):
        found = cached_statistics(open_dataset(path), [0, 1], tmp_path / place)
        assert found["action"].names == ("u", "v", "w")
        assert DatasetStatistics.load(tmp_path / place)["action"].names == ("u", "v", "w")
