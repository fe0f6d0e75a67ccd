"""The mock is a real set on disk, deterministic, reused, written whole, and its pictures decide its actions."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.mock import MARKER, MockConfig, write_mock
from vla_ft.data.noise import INSTRUCTIONS
from vla_ft.errors import UserError

SMALL = MockConfig(episodes=3, min_length=4, max_length=9, image_size=(16, 24), cameras=("top", "side"))


def test_it_reads_like_any_set(tmp_path: Path) -> None:
    reader = open_dataset(write_mock(tmp_path, SMALL))
    assert reader.description.cameras == {"side": (16, 24), "top": (16, 24)}
    assert (reader.description.action_dim, reader.description.proprio_dim) == (14, 14)
    assert len(reader.lengths) == 3
    assert reader.lengths.min() >= 4
    assert reader.lengths.max() <= 9
    assert reader.action_offset == 0
    assert reader.instruction(0) == "move to the disc"
    seven = open_dataset(write_mock(tmp_path, dataclasses.replace(SMALL, action_dim=7, images="jpeg")))
    assert seven.description.action_dim == 7


def test_deterministic_in_its_parameters(tmp_path: Path) -> None:
    def contents(folder: str, **changes: object) -> tuple[str, np.ndarray]:
        reader = open_dataset(write_mock(tmp_path / folder, dataclasses.replace(SMALL, **changes)))
        return reader.fingerprint(), reader.read(1, np.array([2]), ["image_top"])["image_top"]

    first, again, other = contents("a"), contents("b"), contents("a", seed=1)
    assert first[0] == again[0] != other[0]
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_reused_when_it_is_there(tmp_path: Path) -> None:
    path = write_mock(tmp_path, SMALL)
    times = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    assert write_mock(tmp_path, SMALL) == path
    assert {p: p.stat().st_mtime_ns for p in path.iterdir()} == times
    assert write_mock(tmp_path, dataclasses.replace(SMALL, episodes=2)) != path


@pytest.mark.parametrize("damage", ["episode", "marker"])
def test_changed_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = write_mock(tmp_path, SMALL)
    victim = path / ("episode_1.hdf5" if damage == "episode" else MARKER)
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not what was written there\. Delete that folder"):
        write_mock(tmp_path, SMALL)


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vla_ft.data.mock.os.rename", interrupt)
        write_mock(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == [".mock.lock"]
    # What kill -9 would leave is removed by the next writer.
    leftover = tmp_path / f".mock_{SMALL.key()}.unfinished"
    leftover.mkdir()
    (leftover / "episode_7.hdf5").write_bytes(b"half")
    assert len(open_dataset(write_mock(tmp_path, SMALL)).lengths) == 3
    assert not leftover.exists()


def test_processes_that_ask_at_once_get_the_same(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.starmap(write_mock, [(tmp_path, SMALL)] * 3)
    assert len(set(paths)) == 1
    assert sorted(os.listdir(tmp_path)) == [".mock.lock", paths[0].name]


def test_impossible_mocks(tmp_path: Path) -> None:
    for wrong in ({"episodes": 0}, {"min_length": 9, "max_length": 8}, {"cameras": ()}, {"action_dim": 1}):
        with pytest.raises(UserError, match="Cannot generate"):
            MockConfig(**wrong)
    with pytest.raises(UserError, match="show nothing"):
        MockConfig(image_size=(4, 64))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write mock data"):
        write_mock(tmp_path / "file", SMALL)


def disc_centre(image: np.ndarray) -> np.ndarray:
    """(x, y) of the red disc as fractions, found by its colour."""
    rows, columns = np.nonzero(image[..., 0].astype(int) - image[..., 1] > 100)
    return np.array([columns.mean() / image.shape[1], rows.mean() / image.shape[0]])


def test_the_picture_decides_the_action(tmp_path: Path) -> None:
    """A linear map from (joints, disc) predicts unseen episodes well; from joints alone it cannot."""
    config = MockConfig(episodes=40, min_length=10, max_length=20, image_size=(32, 32), seed=4)
    reader = open_dataset(write_mock(tmp_path, config))
    joints = [i for i, name in enumerate(reader.description.action_names) if "gripper" not in name]
    blind, seeing, targets, episodes = [], [], [], []
    for episode, length in enumerate(reader.lengths):
        step = int(length) // 3
        now = reader.read(episode, np.array([step]), ["proprio", "image_top"])
        x, y = disc_centre(now["image_top"][0])
        future = reader.read(episode, np.array([length - 1]), ["action"])["action"][0, joints]
        blind.append([*now["proprio"][0], 1])
        seeing.append([*now["proprio"][0], x, y, x * y, 1])
        targets.append(future)
        episodes.append(episode)
    train, test = np.array(episodes) < 30, np.array(episodes) >= 30
    target = np.array(targets)

    def held_out_error(features: np.ndarray) -> float:
        ridge = np.linalg.solve(
            features[train].T @ features[train] + 1e-3 * np.eye(features.shape[1]), features[train].T
        )
        return float(np.abs(features[test] @ (ridge @ target[train]) - target[test]).mean())

    assert held_out_error(np.array(seeing)) < 0.5 * held_out_error(np.array(blind))


def test_noise_has_widths_of_its_own_and_the_guides_instructions(tmp_path: Path) -> None:
    noise = dataclasses.replace(SMALL, content="noise", format="npz", proprio_dim=8, action_dim=7, episodes=5)
    reader = open_dataset(write_mock(tmp_path, noise))
    assert (reader.description.action_dim, reader.description.proprio_dim) == (7, 8)
    assert [reader.instruction(i) for i in (0, 2, 4)] == [INSTRUCTIONS[0], INSTRUCTIONS[2], INSTRUCTIONS[0]]
    first = reader.read(0, np.arange(int(reader.lengths[0])), ["action", "proprio", "image_top"])
    assert np.abs(first["action"]).max() > 1 and first["image_top"].std() > 60
    with pytest.raises(UserError, match="is for content=noise"):
        dataclasses.replace(SMALL, proprio_dim=8)
