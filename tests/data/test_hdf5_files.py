"""Open HDF5 files: a bounded number, each with its datasets, and none that another process opened."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from vla_ft.data.formats.hdf5_files import OpenFiles
from vla_ft.errors import UserError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for number in range(5):
        with h5py.File(tmp_path / f"{number}.hdf5", "w") as file:
            file["group/values"] = np.arange(4) + number
    return sorted(tmp_path.glob("*.hdf5"))


def opened(paths: list[Path]) -> int:
    return len({file.path for file in psutil.Process().open_files()} & {str(path) for path in paths})


def test_the_last_files_stay_open_with_their_datasets(paths: list[Path]) -> None:
    files = OpenFiles(2)
    for number, path in enumerate(paths):
        assert files.get(path)["group/values"][1] == number + 1
        assert len(files) == opened(paths) == min(2, number + 1)
    last = files.get(paths[4])
    dataset = last["group/values"]
    assert last["group/values"] is dataset and files.get(paths[4]) is last
    assert last.get("group/other") is None and last.get("group/values") is dataset
    with pytest.raises(KeyError):
        last["group/other"]
    files.get(paths[0])
    files.get(paths[1])
    assert not dataset, "its file was closed, and it with it"
    files.close()
    assert opened(paths) == 0
    assert files.get(paths[2])["group/values"][0] == 2, "a closed one opens again"
    copy = pickle.loads(pickle.dumps(files))
    assert (copy.limit, len(copy)) == (2, 0)
    files.close()


def test_a_chunk_is_not_kept_in_memory(paths: list[Path], tmp_path: Path) -> None:
    """HDF5 keeps a megabyte a dataset by default: 64 files of four cameras would be 256 MB in every worker."""
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("frames", data=np.zeros((8, 64, 64, 3), np.uint8), chunks=(1, 64, 64, 3))
    files = OpenFiles(1)
    frames = files.get(tmp_path / "x.hdf5")["frames"]
    assert isinstance(frames, h5py.Dataset)
    assert frames.file.id.get_access_plist().get_cache()[2] == 0
    files.close()
    with pytest.raises(UserError, match="it does not exist"):
        files.get(tmp_path / "y.hdf5")
