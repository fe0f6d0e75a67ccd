"""Moves the bytes: continues what was interrupted, checks every hash, lets one process at a time into a folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from vla_ft.errors import UserError
from vla_ft.weights.hub import Location
from vla_ft.weights.places import FileRecord

Say = Callable[[str], None]
PART = ".part"
"""Ending of a file that is not whole yet."""
LOCK = ".lock"
_CHUNK = 1 << 22


def size(count: float) -> str:
    """Bytes for reading: ``30.5 GB``."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 99.5 else f"{count:.0f} GB"


@contextmanager
def locked(folder: Path, say: Say) -> Iterator[None]:
    """Hold a folder for this process; a second one waits, and then finds what the first fetched.

    A folder that is still empty afterwards is removed again.
    """
    path = folder / LOCK
    with writing(folder), _lock(path, say):
        try:
            yield
        finally:
            if [entry.name for entry in folder.iterdir()] == [LOCK]:
                path.unlink()
                folder.rmdir()


@contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"Another process fetches into {path.parent}; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return
        # The process before this one removed the folder with the lock in it: lock the new one.


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what stops a folder from being written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk of {folder} is full. What has arrived is kept: free some space and run again, or name "
                "another place with to=DIR, or VLA_FT_WEIGHTS for all weights."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"Cannot write {folder} ({error.strerror}). Name a folder of yours with to=DIR, or VLA_FT_WEIGHTS."
            ) from None
        raise


def require_space(name: str, folder: Path, files: dict[str, FileRecord]) -> None:
    """Raise UserError unless what is still to come fits on the folder's disk."""
    parts = {file: folder / f"{file}{PART}" for file in files}
    arrived = sum(part.stat().st_size for part in parts.values() if part.is_file())
    needed = sum(about.bytes for about in files.values()) - arrived
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"'{name}' needs {size(needed)} more in {folder}, and {size(free)} are free there. Free some, or name "
            "another place with to=DIR, or VLA_FT_WEIGHTS for all weights."
        )


def download(location: Location, target: Path, expected: FileRecord) -> None:
    """Bring a file to ``target`` under a name of its own until it is whole; continues one that was interrupted."""
    part = target.with_name(target.name + PART)
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file() and part.stat().st_size > expected.bytes:
        part.unlink()
    try:
        with part.open("ab") as file:
            http_get(
                location.url,
                file,
                resume_size=file.tell(),
                headers=dict(location.headers),
                expected_size=expected.bytes,
                displayed_filename=target.name,
            )
    except OSError as error:
        if isinstance(error, HfHubHTTPError) or error.errno is not None:
            raise
        part.unlink()  # more or fewer bytes than the server had announced: the library's only error without a number
        raise UserError(f"{target.name} arrived with another size than {expected.bytes} bytes. Run again.") from None


def settle(target: Path, expected: FileRecord) -> FileRecord:
    """Check the file that has arrived, give it its name, and return its record with the whole hash.

    A file with another content is removed. Raises UserError naming it.
    """
    part = target.with_name(target.name + PART)
    seen = measure(part)
    if not agrees(seen, expected):
        part.unlink()
        raise UserError(
            f"{target.name} arrived as {describe(seen)}, expected {describe(expected)}. It was removed: run again. "
            "If it happens again, something between here and the server changes files."
        )
    part.replace(target)
    return replace(seen, blob=expected.blob)


def measure(path: Path) -> FileRecord:
    """Size and both hashes of a file."""
    count = path.stat().st_size
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {count}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            if count < _CHUNK:  # a hub gives Git's hash for small files alone
                blob.update(chunk)
    return FileRecord(count, sha256.hexdigest(), blob.hexdigest() if count < _CHUNK else None)


def agrees(seen: FileRecord, expected: FileRecord) -> bool:
    """Whether a file is the expected one by all that is known of that."""
    if seen.bytes != expected.bytes or not (seen.sha256 or "").startswith(expected.sha256 or ""):
        return False
    return expected.blob is None or seen.blob is None or seen.blob == expected.blob


def describe(record: FileRecord) -> str:
    """A file in words, by its size and hash."""
    known = f"sha256 {record.sha256}" if record.sha256 else f"git blob {record.blob}" if record.blob else "any hash"
    return f"{record.bytes} bytes with {known}"
