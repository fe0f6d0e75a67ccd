"""Where the lists of every record lie, kept in a file beside the index: a sample then reads its own bytes alone.

A row, little-endian int64: the number of lists; for each its name's number, kind, begin and end in the record, and how
many spans are kept; then those spans, begin and end of every value. Spans are kept of long lists of strings (images),
because finding them means a walk over the record. Short lists are read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_ft.data.formats.tf_example import Feature, Kind

_KINDS: tuple[Kind, ...] = ("bytes", "float", "int64", "empty")
_FIELDS = 5
_READ_WHOLE = 16 << 10
"""Bytes of a list of strings up to which it is read whole."""

Fetch = Callable[[int, int], bytes]
"""(begin, size) in a record -> its bytes."""


def layout_row(features: Mapping[str, Feature], names: dict[str, int]) -> np.ndarray:
    """The row of a parsed record, int64; names that are new get the next number in ``names``. Raises WireError."""
    heads: list[tuple[int, ...]] = []
    spans: list[np.ndarray] = []
    for name, feature in features.items():
        far = feature.kind == "bytes" and feature.end - feature.start > _READ_WHOLE
        found = np.array(feature.spans() if far else (), dtype=np.int64).reshape(-1)
        number = names.setdefault(name, len(names))
        heads.append((number, _KINDS.index(feature.kind), feature.start, feature.end, len(found) // 2))
        spans.append(found)
    head = np.array(heads, dtype=np.int64).reshape(-1)
    return np.concatenate([np.array([len(heads)], np.int64), head, *spans]).astype("<i8", copy=False)


class StoredRecord(Mapping[str, Feature]):
    """The lists of a record by name, each read when it is asked for; they stay as long as this does."""

    def __init__(self, row: np.ndarray, names: Sequence[str], fetch: Fetch) -> None:
        """``row``: int64, as ``layout_row`` made it."""
        count = int(row[0])
        heads = row[1 : 1 + _FIELDS * count].reshape(count, _FIELDS).tolist()
        self._row, self._fetch = row, fetch
        self._heads: dict[str, tuple[list[int], int]] = {}
        self._read: dict[str, Feature] = {}
        place = 1 + _FIELDS * count
        for head in heads:
            self._heads[names[head[0]]] = (head, place)
            place += 2 * head[4]

    def __getitem__(self, name: str) -> Feature:
        if name not in self._read:
            (_, kind, start, end, spans), place = self._heads[name]
            if spans:
                pairs = self._row[place : place + 2 * spans].reshape(spans, 2)
                self._read[name] = FarList(b"", "bytes", start, end, pairs, self._fetch)
            else:
                self._read[name] = Feature(self._fetch(start, end - start), _KINDS[kind], 0, end - start)
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._heads

    def __iter__(self) -> Iterator[str]:
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)


@dataclass(frozen=True, slots=True)
class FarList(Feature):
    """A list of strings whose places are known: those that are asked for are read, one by one."""

    pairs: np.ndarray
    """int64 [n, 2]: begin and end of each in the record."""
    fetch: Fetch

    def spans(self) -> list[tuple[int, int]]:
        """See ``Feature.spans``; into the record."""
        return list(map(tuple, self.pairs.tolist()))

    def count(self) -> int:
        """See ``Feature.count``."""
        return len(self.pairs)

    def at(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """See ``Feature.at``."""
        return [self.fetch(a, b - a) for a, b in spans]
