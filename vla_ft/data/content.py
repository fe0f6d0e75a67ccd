"""What the files of a dataset hold, images included: a hash a file, remembered so that unchanged files are not read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FileContent:
    """A file's SHA-256 (hex), with the size and time of change (ns) that it had when it was hashed."""

    bytes: int
    mtime_ns: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def hash_files(files: Mapping[str, Path], known: Mapping[str, FileContent]) -> dict[str, FileContent]:
    """The content of every file, by name.

    A file whose size and time of change are those of ``known`` is not read again. So a set that was recorded anew is
    noticed, a set that was copied is read once and recognised, and one thing is not seen: other contents of the same
    length under the old time stamp.
    """
    return {name: _content(path, known.get(name)) for name, path in files.items()}


def _content(path: Path, known: FileContent | None) -> FileContent:
    seen = path.stat()
    if known is not None and (known.bytes, known.mtime_ns) == (seen.st_size, seen.st_mtime_ns):
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileContent(bytes=seen.st_size, mtime_ns=seen.st_mtime_ns, sha256=digest)
