"""HDF5 files opened once per process, a bounded number at a time, with damage told in words."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import h5py

from vla_ft.errors import UserError

HDF5_DAMAGE = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, MemoryError, SystemError
)  # fmt: skip
"""What h5py raises when a damaged file makes it stumble."""


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading. Raises UserError when the file is gone, unreadable or no whole HDF5 file.

    Without HDF5's own lock: it fails on read-only and some network mounts, and episodes are published whole. Without
    its cache of chunks, a megabyte a dataset: what is read at random is not read again soon.
    """
    try:
        return h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    except HDF5_DAMAGE as error:
        if not path.is_file():
            seen = "it does not exist"
        elif not os.access(path, os.R_OK):
            seen = "this user may not read it"
        else:
            seen = f"{path.stat().st_size} bytes that HDF5 refuses ({error})"
        raise UserError(
            f"Cannot open {path}: {seen}. Expected a whole HDF5 file: copy it again, or remove it from the set."
        ) from error


class OpenFile:
    """An open file whose datasets stay open once they were used: finding one costs more than reading a frame of it."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._used: dict[str, h5py.HLObject] = {}

    def __getitem__(self, name: str) -> h5py.HLObject:
        if name not in self._used:
            self._used[name] = self._file[name]
        return self._used[name]

    def get(self, name: str) -> h5py.HLObject | None:
        """What lies at ``name``, or None."""
        return self[name] if name in self._used or name in self._file else None

    def close(self) -> None:
        """Close the file and what is open in it."""
        self._used = {}
        self._file.close()


class OpenFiles:
    """The most recently used files of this process, at most ``limit``.

    A worker that was forked starts with none (HDF5 handles must not be shared between processes), and pickling carries
    none, so a reader that holds this works in forked and spawned workers alike.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()
        self._process = os.getpid()

    def get(self, path: Path) -> OpenFile:
        """The open file at ``path``. Raises UserError like ``open_hdf5``."""
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        if path not in self._files:
            while len(self._files) >= self.limit:
                self._files.popitem(last=False)[1].close()
            self._files[path] = OpenFile(open_hdf5(path))
        self._files.move_to_end(path)
        return self._files[path]

    def close(self) -> None:
        """Close every file that this process opened."""
        if self._process == os.getpid():
            for file in self._files.values():
                file.close()
        self._files = OrderedDict()

    def __len__(self) -> int:
        return len(self._files) if self._process == os.getpid() else 0

    def __getstate__(self) -> dict[str, int]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]
