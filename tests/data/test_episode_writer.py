"""The writer publishes whole episodes or nothing: on success, abort, exception, full disk and kill -9."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_ft.data.formats.writer import EpisodeWriter
from vla_ft.errors import UserError

SIZE = (12, 16)


def step(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "qpos": rng.normal(size=14),
        "qvel": rng.normal(size=14),
        "action": rng.normal(size=14),
        "images": {"top": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)},
    }


def write(folder: Path, steps: int = 3, **options) -> Path:
    with EpisodeWriter(folder, cameras={"top": SIZE}, sim=True, **options) as writer:
        for seed in range(steps):
            writer.add(**step(seed))
    assert writer.path is not None
    return writer.path


def test_layout_is_the_published_one(tmp_path: Path) -> None:
    path = write(tmp_path, attributes={"task": "transfer_cube"})
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"sim": True, "compress": False, "task": "transfer_cube"}
        assert file["observations/images/top"].chunks == (1, *SIZE, 3)
        assert file["observations/images/top"].dtype == np.uint8
        for seed in range(3):
            expected = step(seed)
            assert np.array_equal(file["action"][seed], expected["action"])
            assert np.array_equal(file["observations/qpos"][seed], expected["qpos"])
            assert np.array_equal(file["observations/qvel"][seed], expected["qvel"])
            assert np.array_equal(file["observations/images/top"][seed], expected["images"]["top"])


def test_number_follows_the_highest(tmp_path: Path) -> None:
    assert write(tmp_path).name == "episode_0.hdf5"
    (tmp_path / "episode_0.hdf5").rename(tmp_path / "episode_41.hdf5")
    assert write(tmp_path).name == "episode_42.hdf5"


def test_abort_and_exception_leave_nothing(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path, cameras={"top": SIZE}, sim=True) as writer:
        writer.add(**step(0))
        writer.abort()
    assert writer.path is None
    with pytest.raises(RuntimeError, match="simulator"), EpisodeWriter(tmp_path, cameras={}, sim=True) as writer:
        raise RuntimeError("the simulator failed")
    with pytest.raises(ValueError, match="without steps"), EpisodeWriter(tmp_path, cameras={}, sim=True):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qpos": np.full(14, np.nan)}, "finite"),
        ({"action": np.zeros(13)}, "action must be"),
        ({"images": {"side": np.zeros((*SIZE, 3), np.uint8)}}, "cameras"),
        ({"images": {"top": np.zeros((8, 8, 3), np.uint8)}}, "expected uint8"),
        ({"images": {"top": np.zeros((*SIZE, 3), np.float32)}}, "expected uint8"),
    ],
)
def test_steps_that_do_not_fit_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), EpisodeWriter(tmp_path, cameras={"top": SIZE}, sim=True) as writer:
        writer.add(**step(0))
        writer.add(**{**step(1), **change})
    assert list(tmp_path.iterdir()) == []


def test_two_writers_in_one_folder(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path, cameras={"top": SIZE}, sim=True) as first:
        first.add(**step(0))
        second = write(tmp_path)
        assert second.name == "episode_0.hdf5"
    assert first.path == tmp_path / "episode_1.hdf5"


def test_missing_permission_is_explained(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="Cannot write an episode to"):
        EpisodeWriter(blocker, cameras={}, sim=True)


def run_python(code: str, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *arguments], text=True, **options)


FULL_DISK = """
    import resource, sys
    import numpy as np
    from vla_ft.data.formats.writer import EpisodeWriter
    from vla_ft.errors import UserError
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        with EpisodeWriter(sys.argv[1], cameras={"top": (64, 64)}, sim=True, compress=sys.argv[2] == "jpeg") as writer:
            rng = np.random.default_rng(0)
            for _ in range(200):
                image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                writer.add(qpos=np.zeros(14), qvel=np.zeros(14), action=np.zeros(14), images={"top": image})
    except UserError as error:
        print(error)
        sys.exit(2)
"""


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    process = run_python(FULL_DISK, str(tmp_path), form, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert out.startswith("No space left for an episode in")
    assert int(out.split("(")[1].split()[0]) < 100, "it should stop at the step that does not fit"
    assert err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["pwrite", "fsync", "link"])
def test_a_disk_that_is_full_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = EpisodeWriter(tmp_path, cameras={"top": SIZE}, sim=True)
    writer.add(**step(0))
    monkeypatch.setattr(f"vla_ft.data.formats.writer.os.{call}", fail)
    with pytest.raises(UserError, match="No space left for an episode"):
        writer.commit()
    assert list(tmp_path.iterdir()) == []


KILLED = """
    import sys, time
    import numpy as np
    from vla_ft.data.formats.writer import EpisodeWriter
    writer = EpisodeWriter(sys.argv[1], cameras={"top": (64, 64)}, sim=True)
    while True:
        image = np.zeros((64, 64, 3), np.uint8)
        writer.add(qpos=np.zeros(14), qvel=np.zeros(14), action=np.zeros(14), images={"top": image})
        print(writer.steps, flush=True)
        time.sleep(0.001)
"""


def test_kill_9_leaves_the_set_readable_and_the_next_writer_cleans(tmp_path: Path) -> None:
    whole = write(tmp_path)
    process = run_python(KILLED, str(tmp_path), stdout=subprocess.PIPE)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 20:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [p for p in tmp_path.iterdir() if p != whole]
    assert len(left) == 1
    assert left[0].name.startswith(".")

    assert write(tmp_path).name == "episode_1.hdf5"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episode_0.hdf5", "episode_1.hdf5"]


def test_a_living_writer_is_not_cleaned_away(tmp_path: Path) -> None:
    living = EpisodeWriter(tmp_path, cameras={"top": SIZE}, sim=True)
    living.add(**step(0))
    write(tmp_path)
    assert living.commit().name == "episode_1.hdf5"
    assert len(os.listdir(tmp_path)) == 2
