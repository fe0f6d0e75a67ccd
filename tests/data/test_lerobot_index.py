"""LeRobot's index between processes: what one has published, another neither removes nor makes unreadable."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_sets import KEYS, LENGTHS, arrays_of, describe, edit_json, write_set

from vla_ft.data.formats import lerobot_index
from vla_ft.data.formats.lerobot import LeRobotReader, exact_times
from vla_ft.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lerobot") / "set"
    write_set(folder, "v3.0", "image")
    return folder


def test_what_another_process_has_published_stays(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two begin at once: one is done and its workers read, the other has only seen that nothing is there."""
    load, build, others = lerobot_index._load, lerobot_index._build, []

    def late(*arguments: object) -> object:
        monkeypatch.setattr(lerobot_index, "_load", load)
        try:
            return load(*arguments)
        except OSError:
            others.append(LeRobotReader(dataset, cache=tmp_path))
            raise

    def building(*arguments: object) -> object:
        for other in others:
            worker = pickle.loads(pickle.dumps(other))
            assert worker.read(0, np.arange(2), ["action"])["action"].shape == (2, 6)
        return build(*arguments)

    monkeypatch.setattr(lerobot_index, "_load", late)
    monkeypatch.setattr(lerobot_index, "_build", building)
    reader = LeRobotReader(dataset, cache=tmp_path)
    assert len(others) == 1
    assert reader.index.folder == others[0].index.folder
    assert [path.name for path in (tmp_path / "lerobot").iterdir()] == [reader.index.folder.name]  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", [errno.EIO, errno.EMFILE])
def test_a_passing_fault_removes_no_index(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    first = LeRobotReader(dataset, cache=tmp_path)
    folder = first.index.folder
    assert folder is not None
    (folder / "mark").touch()
    read_text = Path.read_text

    def failing(path: Path, *rest: object) -> str:
        if path.name == "index.json":
            monkeypatch.setattr(Path, "read_text", read_text)
            raise OSError(fault, "for a moment")
        return read_text(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", failing)
    again = LeRobotReader(dataset, cache=tmp_path)
    assert again.fingerprint() == first.fingerprint()
    assert (folder / "mark").exists(), "the good index was replaced"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_version_that_the_files_are_not_laid_out_for(tmp_path: Path, version: str) -> None:
    other = "v3.0" if version == "v2.1" else "v2.1"
    path = write_set(tmp_path / "set", other, "image")
    edit_json(path / "meta/info.json", lambda info: info.update(codebase_version=version))
    with pytest.raises(UserError, match=rf"info\.json says {version}, but the files are laid out as {other}"):
        LeRobotReader(path, cache=tmp_path / "cache")


def test_frames_of_a_long_recording() -> None:
    """From 2,048 s on, float32 seconds lie up to 0.12 ms beside the frame; only real differences are kept."""
    steps = np.arange(70_000, 70_030)
    stored = (steps / 30).astype(np.float32)
    assert np.abs(stored - steps / 30).max() > 1e-4
    np.testing.assert_array_equal(exact_times(stored, steps, 30.0), steps / 30)
    odd = stored.copy()
    odd[3] += np.float32(0.004)
    times = exact_times(odd, steps, 30.0)
    assert times[3] == odd[3].astype(np.float64)
    np.testing.assert_array_equal(np.delete(times, 3), np.delete(steps / 30, 3))


def test_a_changed_byte_damages_its_own_episode_alone(tmp_path: Path) -> None:
    """In a file of many episodes: those of other row groups are as they were."""
    path = write_set(tmp_path / "set", "v3.0", "image", data_megabytes=100.0)
    (file,) = (path / "data").rglob("*.parquet")
    whole, about = file.read_bytes(), pq.ParquetFile(file).metadata
    assert about.num_row_groups == len(LENGTHS)
    names = [about.schema.column(place).path for place in range(about.num_columns)]
    for column in ("action.list.element", "episode_index"):
        place = about.row_group(1).column(names.index(column)).data_page_offset
        content = bytearray(whole)
        content[place + about.row_group(1).column(names.index(column)).total_compressed_size - 1] ^= 0xFF
        file.write_bytes(content)
        reader = LeRobotReader(path, cache=tmp_path / column)
        assert list(reader.damage) == [1]
        with pytest.raises(UserError, match=r"file-000\.parquet: episode 1: rows 7 to 10 cannot be read: "):
            reader.read(1, np.arange(2), ["action"])
        for episode in (0, 2):
            read = reader.read(episode, np.arange(LENGTHS[episode]), KEYS)
            for key, rows in arrays_of(episode, LENGTHS[episode], describe()).items():
                np.testing.assert_array_equal(read[key], rows)
