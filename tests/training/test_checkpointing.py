from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vla_ft.checkpoints import MANIFEST, find_checkpoint, verify
from vla_ft.errors import UserError
from vla_ft.training.checkpointing import CheckpointStore, disk_errors, sole_writer


def save(store: CheckpointStore, step: int, content: bytes = b"weights") -> None:
    (store.prepare(step) / "model.safetensors").write_bytes(content)
    store.commit(step, {"policy": "act"})


def test_latest_is_none_without_a_checkpoint_and_the_newest_after_saving(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    assert store.latest() is None
    save(store, 1)
    save(store, 2)
    assert store.latest() == tmp_path / "step_00000002"
    assert verify(store.latest())["step"] == 2


def test_keeps_the_last_n(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in range(1, 6):
        save(store, step)
    assert [path.name for path in store.complete()] == ["step_00000004", "step_00000005"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".trash", ".incoming"))]


def test_keep_last_one_leaves_one(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    for step in (1, 2):
        save(store, step)
    assert [path.name for path in store.complete()] == ["step_00000002"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_and_the_older_whole_one_is_offered(tmp_path, damage):
    store = CheckpointStore(tmp_path, keep_last=3)
    save(store, 1)
    save(store, 2)
    file = store.latest() / "model.safetensors"
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(b"weightz" if damage == "flip" else b"we")
    with pytest.raises(UserError, match=r"step_00000002 is damaged: model\.safetensors .* resume=.*step_00000001"):
        store.latest()


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    save(store, 1, b"first")
    save(store, 1, b"second")
    assert (store.latest() / "model.safetensors").read_bytes() == b"second"
    verify(store.latest())


def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    (store.prepare(7) / "half").write_bytes(b"x")
    save(store, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000008"]


def test_find_checkpoint_takes_a_run_folder_or_a_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=3)
    save(store, 3)
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path / "checkpoints") == store.latest()
    assert find_checkpoint(store.latest()) == store.latest()
    with pytest.raises(UserError, match="No checkpoint at"):
        find_checkpoint(tmp_path / "nowhere")


def test_another_format_is_refused(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 1)
    manifest = tmp_path / "step_00000001" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(UserError, match="format 99, this version reads 1"):
        verify(tmp_path / "step_00000001")


def test_a_full_disk_becomes_a_sentence_and_cleans_up(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1)
    save(store, 1)
    with (
        pytest.raises(UserError, match=r"Checkpoint .* No space left on device .* Free space"),
        disk_errors("Checkpoint of step 2", store.folder, store.sweep),
    ):
        (store.prepare(2) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert store.latest().name == "step_00000001"
    assert not list(store.folder.glob(".incoming*"))


def test_other_system_errors_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="broken"), disk_errors("x", tmp_path):
        raise OSError(errno.EIO, "broken")


def test_two_writers_are_refused(tmp_path):
    with sole_writer(tmp_path), pytest.raises(UserError, match="Another process is training"), sole_writer(tmp_path):
        pass
    with sole_writer(tmp_path):
        pass


WRITER = textwrap.dedent(
    """
    import sys, pathlib
    from vla_ft.training.checkpointing import CheckpointStore
    store = CheckpointStore(pathlib.Path(sys.argv[1]), keep_last=2)
    first = int(store.latest().name[5:]) + 1 if store.latest() else 1
    for step in range(first, first + 100000):
        folder = store.prepare(step)
        for name in ("model.safetensors", "optimizer.safetensors"):
            (folder / name).write_bytes(f"{name} {step} ".encode() * 20000)
        store.commit(step, {"policy": "act"})
    """
)


@pytest.mark.parametrize("trials", [pytest.param(8), pytest.param(60, marks=pytest.mark.nightly)])
def test_a_writer_killed_at_any_moment_leaves_a_whole_latest(tmp_path, trials):
    chance = random.Random(0)
    reached = 0
    for _ in range(trials):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        deadline = time.monotonic() + 20
        while not (tmp_path / "latest").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.15, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        latest = CheckpointStore(tmp_path, keep_last=2).latest()
        step = int(latest.name[5:])
        assert step >= reached, "a checkpoint that was announced is gone"
        assert (latest / "model.safetensors").read_bytes().startswith(f"model.safetensors {step} ".encode())
        reached = step
    assert reached > trials, "the writer hardly ran: the trial proves nothing"
