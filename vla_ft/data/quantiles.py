"""Moments and quantiles of columns that arrive in pieces, in bounded memory.

Quantiles are NumPy's own while the values fit; beyond that a sketch of sorted, thinned buffers after Munro and Paterson
(1980) and Manku, Rajagopalan, Lindsay (SIGMOD 1998): a full buffer is sorted and every second value goes up a level,
where it counts double. Thinning one buffer of level h moves any rank by at most 2^h, and of n values n / (k 2^h)
buffers of size k fill on level h, so all ranks are off by at most n H / k over H levels: ``Sketch.rank_error``.
"""

from __future__ import annotations

import numpy as np

EXACT_VALUES = 2**25
"""Numbers (values x dimensions) of a feature that are kept whole: 128 MiB of float32."""
BUFFER = 2**16
"""Rows of a sketch's buffer, an even number. A billion steps fill 14 levels: ranks are then off by at most 0.03 %."""


class Moments:
    """Count, mean, population standard deviation, minimum and maximum, float64 (merging: Chan, Golub, LeVeque 1979)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean, self._squares = np.zeros(width), np.zeros(width)
        self.min, self.max = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Take in rows [n, D]."""
        if not len(rows):
            return
        wide = rows.astype(np.float64)
        count, mean = len(wide), wide.mean(axis=0)
        total = self.count + count
        shift = mean - self.mean
        self._squares += ((wide - mean) ** 2).sum(axis=0) + shift**2 * self.count * count / total
        self.mean = self.mean + shift * count / total
        self.min, self.max = np.minimum(self.min, wide.min(axis=0)), np.maximum(self.max, wide.max(axis=0))
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation (ddof 0), float64 [D]."""
        return np.sqrt(self._squares / max(1, self.count))


class Sketch:
    """Approximate quantiles of float32 rows [n, D], each dimension by itself, in levels x ``buffer`` rows of memory."""

    def __init__(self, width: int, buffer: int = BUFFER) -> None:
        self.width, self.buffer, self.count = width, buffer, 0
        self._levels: list[list[np.ndarray]] = [[]]
        self._odd: list[bool] = [False]

    @property
    def rank_error(self) -> float:
        """Bound on how far any answer's rank is from the one asked for, as a share of all values."""
        return (len(self._levels) - 1) / self.buffer

    def add(self, rows: np.ndarray) -> None:
        """Take in rows [n, D]."""
        self.count += len(rows)
        self._levels[0].append(np.array(rows, dtype=np.float32))
        level = 0
        while sum(map(len, self._levels[level])) >= self.buffer:
            self._thin(level)
            level += 1

    def quantile(self, q: float) -> np.ndarray:
        """float64 [D]: values whose rank is ``q`` of all, up to ``rank_error``."""
        values = np.concatenate([part for parts in self._levels for part in parts])
        weights = np.concatenate([np.full(len(part), 2.0**h) for h, parts in enumerate(self._levels) for part in parts])
        order = np.argsort(values, axis=0, kind="stable")
        answer = np.empty(self.width)
        for dimension in range(self.width):
            column = order[:, dimension]
            # The middle of the run of ranks that each value stands for; NumPy counts ranks 0 to n - 1.
            ranks = np.cumsum(weights[column]) - (weights[column] + 1) / 2
            answer[dimension] = np.interp(q * (self.count - 1), ranks, values[column, dimension].astype(np.float64))
        return answer

    def _thin(self, level: int) -> None:
        rows = np.concatenate(self._levels[level])
        whole = len(rows) // self.buffer * self.buffer
        if level + 1 == len(self._levels):
            self._levels.append([])
            self._odd.append(False)
        for start in range(0, whole, self.buffer):
            part = np.sort(rows[start : start + self.buffer], axis=0)
            # The lower and the upper of each pair in turn: the errors of successive buffers cancel in part.
            self._levels[level + 1].append(part[int(self._odd[level]) :: 2].copy())
            self._odd[level] = not self._odd[level]
        self._levels[level] = [rows[whole:]] if whole < len(rows) else []


class Quantiles:
    """Quantiles of float32 rows [n, D]: exact up to ``exact_values`` numbers, a ``Sketch`` beyond."""

    def __init__(self, width: int, exact_values: int = EXACT_VALUES, buffer: int = BUFFER) -> None:
        self.exact_values = exact_values
        self._rows: list[np.ndarray] = []
        self._held = 0
        self._sketch: Sketch | None = None
        self._width, self._buffer = width, buffer

    @property
    def rank_error(self) -> float:
        """0 while exact; see ``Sketch.rank_error``."""
        return 0.0 if self._sketch is None else self._sketch.rank_error

    def add(self, rows: np.ndarray) -> None:
        """Take in rows [n, D]."""
        if self._sketch is not None:
            self._sketch.add(rows)
            return
        self._rows.append(np.array(rows, dtype=np.float32))
        self._held += rows.size
        if self._held > self.exact_values:
            self._sketch = Sketch(self._width, self._buffer)
            for kept in self._rows:
                self._sketch.add(kept)
            self._rows = []

    def quantile(self, q: float) -> np.ndarray:
        """float64 [D]; by linear interpolation, as NumPy's default."""
        if self._sketch is not None:
            return self._sketch.quantile(q)
        # A dimension at a time: all at once would be a second copy of what is held.
        columns = (np.concatenate([part[:, d] for part in self._rows]) for d in range(self._width))
        return np.array([np.quantile(column.astype(np.float64), q) for column in columns])
