"""What is known of a dataset's files and kept for the next opening, under their names, sizes and times of change."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

CACHE_VARIABLE = "VLA_FT_CACHE"
"""Environment variable that names the cache folder; ``~/.cache/vla_ft`` without it."""
_SETTLED_SECONDS = 2.0
"""A file that changed this recently may change again under the same time stamp: nothing is kept of it."""


def cache_folder() -> Path:
    """Folder of caches for all runs: ``VLA_FT_CACHE``, else ``vla_ft`` below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    given = os.environ.get(CACHE_VARIABLE)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if caches.startswith("~"):  # a container's user without a home
        caches = f"{tempfile.gettempdir()}/cache-{os.getuid()}"
    return Path(given or f"{caches}/vla_ft")


@dataclass(frozen=True)
class Stamp:
    """Identity (hex) of a set's files as they are, and whether they have been so for long enough to rely on it."""

    identity: str
    settled: bool


def stamp(folder: Path, names: Sequence[str]) -> Stamp:
    """Of these files in ``folder``; one that is missing has a place of its own in the identity."""
    facts = np.full((len(names), 2), -1, dtype=np.int64)
    now = time.time_ns()
    for place, name in enumerate(names):
        with contextlib.suppress(OSError):
            seen = os.stat(f"{folder}/{name}")
            facts[place] = seen.st_size, seen.st_mtime_ns
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))
    digest.update(facts.tobytes())
    newest = int(facts[:, 1].max(initial=0))
    return Stamp(digest.hexdigest(), newest < now - _SETTLED_SECONDS * 1e9)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What ``keep_arrays`` wrote; None when there is nothing whole."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, MemoryError):
        return None


def keep_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays so that a reader sees all of them or none; a cache that cannot be written is no mistake."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    _keep(path, content.getvalue())


def remembered(kind: str, what: str, found: Stamp, compute: Callable[[], str]) -> str:
    """A short text that follows from files (``found``) and ``what``: kept from an earlier run, or computed now."""
    key = hashlib.sha256(f"{found.identity} {what}".encode()).hexdigest()
    path = cache_folder() / kind / key[:40]
    with contextlib.suppress(OSError, ValueError):
        head, text = path.read_text().split("\n")
        if head == key and text:
            return text
    text = compute()
    if found.settled:
        _keep(path, f"{key}\n{text}".encode())
    return text


def _keep(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
