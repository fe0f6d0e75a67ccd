"""Files opened once per process for reads at given places, a bounded number at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path


class OpenDescriptors:
    """File descriptors of the most recently used files, at most ``limit``; for ``os.pread``, which has no position to
    share, so that a forked process may go on using them. Pickling carries none.
    """

    def __init__(self, limit: int = 8) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def get(self, path: Path) -> int:
        """The descriptor of ``path``. Raises OSError when it cannot be opened."""
        if path not in self._open:
            while len(self._open) >= self.limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(path)
        return self._open[path]

    def drop(self, path: Path) -> None:
        """Close ``path`` if it is open."""
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close all."""
        for path in list(self._open):
            self.drop(path)

    def __del__(self) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._open)

    def __getstate__(self) -> dict[str, int]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]
