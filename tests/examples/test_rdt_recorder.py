"""The C++ recorder of the guide: compiled, run, and what it wrote checked and read as any other set."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_ft.cli import main
from vla_ft.config import DataConfig

SOURCE = Path(__file__).parents[2] / "examples" / "rdt" / "recorder" / "record_example.cpp"


def hdf5_flags() -> list[str] | None:
    """How the HDF5 library is compiled against here; None where its headers are not installed."""
    for package in ("hdf5-serial", "hdf5"):
        asked = ["pkg-config", "--cflags", "--libs", package]
        if (
            shutil.which("pkg-config")
            and (done := subprocess.run(asked, capture_output=True, text=True)).returncode == 0
        ):
            return done.stdout.split()
    return None


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler, flags = shutil.which("g++") or shutil.which("c++"), hdf5_flags()
    if compiler is None:
        pytest.skip("no C++ compiler here")
    if flags is None:
        pytest.skip("HDF5's headers are not installed here (Debian: libhdf5-dev)")
    program = tmp_path_factory.mktemp("recorder") / "record_example"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", str(SOURCE), "-o", str(program), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def record(recorder: Path, path: Path, steps: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(recorder), str(path), str(steps)], capture_output=True, text=True)


def test_what_it_writes_passes_the_check_and_is_read(recorder: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "mine", tmp_path / "check.json"
    folder.mkdir()
    for number, steps in enumerate((130, 150)):
        done = record(recorder, folder / f"episode_{number}.hdf5", steps)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["episode_0.hdf5", "episode_1.hdf5"]
    words = ["images=all", "workers=0", "data.shortest=128", "data.skip_still=0.01", f"output={output}"]
    assert main(["data", "check", str(folder), *words]) == 0
    found = json.loads(output.read_text())
    assert (found["errors"], found["warnings"], found["left_out"]) == (0, 0, [])
    assert (found["episodes"], found["steps"], found["frames"]) == (2, 280, 3 * 280)

    reader = DataConfig(path="").open(str(folder))
    assert reader.description.fps == 25.0 and reader.instruction(1) == "move both arms"
    assert reader.description.cameras == dict.fromkeys(("cam_high", "cam_left_wrist", "cam_right_wrist"), (48, 64))
    values = reader.read(0, np.arange(130), ("action", "proprio", "image_cam_left_wrist"))
    assert np.array_equal(values["action"][:-1], values["proprio"][1:])
    expected = 0.6 * np.sin(2.0 * np.arange(130) / 25 + 0.4 * 3)
    np.testing.assert_allclose(values["proprio"][:, 3], expected, atol=1e-6)
    frame = values["image_cam_left_wrist"][5]
    assert frame[24, 5 + 13].tolist() == [255, 255, 60] and frame[10, 40].tolist() == [120, 40, 60]


def test_rows_are_chunks_of_one_and_wrong_use_is_told(recorder: Path, tmp_path: Path) -> None:
    assert record(recorder, tmp_path / "episode_0.hdf5", 3).returncode == 0
    with h5py.File(tmp_path / "episode_0.hdf5") as file:
        assert file["observations/images/cam_high"].chunks == (1, 48, 64, 3)
        assert file["action"].dtype == np.float32 and file["action"].maxshape == (None, 14)
    done = record(recorder, tmp_path / "episode_1.hdf5", 0)
    assert done.returncode == 1 and "an episode without steps is no episode" in done.stderr
    assert not (tmp_path / "episode_1.hdf5").exists()


def test_a_disk_that_is_full_leaves_no_episode(recorder: Path, tmp_path: Path) -> None:
    """Three steps stay in HDF5's memory until the end: 28 KB of pictures each, of which 40 KB in all fit."""
    done = subprocess.run(
        [str(recorder), str(tmp_path / "episode_0.hdf5"), "3"],
        capture_output=True,
        text=True,
        timeout=60,
        restore_signals=False,  # a write past the limit is an error, as on a full disk, and no signal
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )
    assert done.returncode == 1 and "record_example: HDF5 could not write" in done.stderr
    assert not (tmp_path / "episode_0.hdf5").exists()
