"""Checkpoints of a run: directories written beside and renamed into place, a manifest of hashes, ``latest`` moved last.

A crash at any moment leaves a whole checkpoint behind, the old one or the new one. All of it is safetensors
or JSON.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vla_ft.checkpoints import LATEST, MANIFEST, is_whole, step_folder, verify, write_manifest
from vla_ft.errors import UserError

_INCOMING = ".incoming-"
_TRASH = ".trash-"
ABANDONED = "abandoned_"
"""Begins the name of a checkpoint that a run went back behind."""
_LOCK = ".lock"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class CheckpointStore:
    """The checkpoints of one run folder. One process writes; readers may be many."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def incoming(self, step: int) -> Path:
        """Where the files of a new checkpoint are gathered before ``commit``."""
        return self.folder / f"{_INCOMING}{step_folder(step)}"

    def prepare(self, step: int) -> Path:
        """Make an empty incoming folder, clearing what a killed process left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        incoming = self.incoming(step)
        incoming.mkdir()
        return incoming

    def commit(self, step: int, about: dict[str, Any]) -> Path:
        """Hash, sync and rename the incoming folder of ``step``, then move ``latest`` and prune old checkpoints."""
        incoming, final = self.incoming(step), self.folder / step_folder(step)
        write_manifest(incoming, {"step": step, **about})
        for path in incoming.iterdir():
            _sync(path)
        _sync(incoming)
        if final.exists():  # an earlier process was killed between this rename and moving `latest`
            self._discard(final)
        incoming.rename(final)
        _sync(self.folder)
        replace_text(self.folder / LATEST, final.name)
        self._prune(final)
        return final

    def latest(self) -> Path | None:
        """The checkpoint that ``latest`` names, verified against its manifest; None when the run has none.

        Raises UserError when it is damaged, naming the file and the newest older checkpoint that is whole.
        """
        pointer = self.folder / LATEST
        if not pointer.is_file():
            return None
        path = self.folder / pointer.read_text().strip()
        try:
            verify(path)
        except UserError as error:
            older = next((c for c in reversed(self.complete()) if c != path and is_whole(c)), None)
            advice = f"The newest whole one is {older}: resume={older}." if older else "No other checkpoint is whole."
            raise UserError(f"{error} {advice}") from None
        return path

    def rewind(self, path: Path) -> list[Path]:
        """Continue from ``path``: later checkpoints of this run, if any, are set aside under another name.

        ``path`` may be one that was set aside itself; another of its own step is then in the way too.
        """
        if path.parent != self.folder:
            return []
        step = path.name.removeprefix(ABANDONED).partition(".")[0]
        later = [other for other in self.complete() if other.name >= step and other != path]
        if later:
            replace_text(self.folder / LATEST, path.name)
        return [other.rename(self._aside(other)) for other in later]

    def _aside(self, path: Path) -> Path:
        """A free name for a checkpoint that is set aside: an earlier rewind may have taken the first."""
        names = (f"{ABANDONED}{path.name}", *(f"{ABANDONED}{path.name}.{number}" for number in range(2, 1000)))
        return next(other for name in names if not (other := path.with_name(name)).exists())

    def complete(self) -> list[Path]:
        """Checkpoint folders, oldest first; their hashes are not looked at."""
        return sorted(path for path in self.folder.glob("step_*") if (path / MANIFEST).is_file())

    def sweep(self) -> None:
        """Remove what killed processes left: folders that never got their final name, or had lost it."""
        for path in [*self.folder.glob(f"{_INCOMING}*"), *self.folder.glob(f"{_TRASH}*")]:
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self, newest: Path) -> None:
        kept = (
            [path for path in self.complete() if path != newest][-(self.keep_last - 1) :] if self.keep_last > 1 else []
        )
        for path in self.complete():
            if path != newest and path not in kept:
                self._discard(path)

    def _discard(self, path: Path) -> None:
        # Renamed first: a folder that is half deleted must not look like a checkpoint.
        trash = path.with_name(f"{_TRASH}{path.name}")
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the lock goes with the process, however it ends. Raises UserError."""
    with disk_errors("The run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    with lock:
        # A forked data worker would keep the lock alive for seconds after a kill.
        os.register_at_fork(after_in_child=lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is training in {folder}. Wait for it, stop it, or choose another output=."
            ) from None
        yield


def replace_text(path: Path, text: str) -> None:
    """Put a small text file in place in one step that survives a crash."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    replace_file(temporary, path)


def replace_file(written: Path, path: Path) -> None:
    """Give a file that was written beside it its final name, in one step that survives a crash."""
    _sync(written)  # else a crash may leave the name and not the bytes
    os.replace(written, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(
    what: str, folder: Path, clean_up: Callable[[], None] = lambda: None, setting: str = "output"
) -> Iterator[None]:
    """Turn a full disk or missing permission inside the block into a UserError, after ``clean_up``.

    ``setting`` names another place.
    """
    try:
        yield
    except BaseException as error:
        clean_up()
        if not isinstance(error, OSError) or error.errno not in _DISK_ERRORS:
            raise
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free / 2**30
        raise UserError(
            f"{what} could not be written to {folder}: {os.strerror(error.errno)} ({free:.2f} GiB free). "
            f"What was there before is untouched. Free space or choose another {setting}=."
        ) from None
