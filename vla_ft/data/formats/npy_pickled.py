"""The two documented layouts of ``observations.npy``: an array of dicts, or a dict of arrays. Both are pickles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.npy_files import MemoryRows, NpyError, Rows, read_header
from vla_ft.data.formats.npy_pickle import PickledArray, observation_dicts, read_pickle

_Signature = tuple[tuple[str, str, tuple[int, ...]], ...]


def open_pickled(path: Path, lengths: np.ndarray) -> tuple[dict[str, Rows], dict[int, str]]:
    """Columns [N, ...] by name, and step -> what is wrong with its dict. Raises NpyError.

    ``lengths`` int64 [episodes] serve to say which step of which episode it is. Dicts are copied into one array a
    column, a step at a time, so that processes that are forked later share them.
    """
    header = read_header(path)
    with path.open("rb") as file:
        file.seek(header.begin)
        content = observation_dicts(read_pickle(file, path.stat().st_size))
    if isinstance(content, dict):
        return {name: MemoryRows(_numbers(value, name)) for name, value in content.items()}, {}
    if len(content) != header.shape[0]:
        raise NpyError(f"{path.name} promises {header.shape[0]} observations and holds {len(content)}")
    return _stacked(content, lengths)


def _stacked(steps: list[Any], lengths: np.ndarray) -> tuple[dict[str, Rows], dict[int, str]]:
    signatures = [_signature(step) for step in steps]
    usual = Counter(s for s in signatures if isinstance(s, tuple)).most_common(1)
    if not usual:
        first = signatures[0] if signatures else "no steps"
        raise NpyError(f"step 0: {first}; expected a dict with image_left, image_right and state")
    form: _Signature = usual[0][0]
    damage = {
        number: f"{_place(number, lengths)}: {_difference(seen, form)}"
        for number, seen in enumerate(signatures)
        if seen != form
    }
    columns = {name: np.zeros((len(steps), *shape), dtype=dtype) for name, dtype, shape in form}
    for number, step in enumerate(steps):
        if number not in damage:
            for name, column in columns.items():
                column[number] = _values(step[name])
        steps[number] = None  # its memory goes; the column's pages come as they are filled
    return {name: MemoryRows(column) for name, column in columns.items()}, damage


def _values(value: Any) -> np.ndarray:
    return value.values if type(value) is PickledArray else np.asarray(value)


def _numbers(value: Any, name: str) -> np.ndarray:
    if type(value) is not PickledArray or value.objects or not value.shape:
        raise NpyError(f"{name} is {_kind(value)}, expected an array with time as its first axis")
    return value.values


def _signature(step: Any) -> _Signature | str:
    """Name, dtype and shape of every entry of a step, by name; or what is wrong with it."""
    if type(step) is not dict:
        return f"it is {_kind(step)}, expected a dict"
    entries = []
    for name in sorted(step):
        value = step[name]
        plain = type(value) is PickledArray and not value.objects and value.values is not None
        if not plain and not isinstance(value, int | float | np.number):
            return f"'{name[:40]}' is {_kind(value)}, expected an array of numbers"
        array = _values(value)
        entries.append((name, array.dtype.str, tuple(array.shape)))
    return tuple(entries)


def _difference(seen: _Signature | str, form: _Signature) -> str:
    if isinstance(seen, str):
        return seen
    have, expected = {n: (d, s) for n, d, s in seen}, {n: (d, s) for n, d, s in form}
    missing = [name for name in expected if name not in have]
    if missing:
        return f"it lacks '{missing[0]}'"
    other = [name for name in have if have[name] != expected.get(name)]
    dtype, shape = have[other[0]]
    if other[0] not in expected:
        return f"it has '{other[0][:40]}', which other steps have not"
    usual = expected[other[0]]
    return f"'{other[0]}' is {np.dtype(dtype)} {shape}, other steps have {np.dtype(usual[0])} {usual[1]}"


def _kind(value: Any) -> str:
    """Never the value itself: it comes from a file that anyone may have written."""
    if type(value) is PickledArray:
        return f"an array of objects {value.shape}" if value.objects else f"an array {value.shape}"
    return f"a {type(value).__name__}"


def _place(number: int, lengths: np.ndarray) -> str:
    ends = np.cumsum(lengths)
    episode = int(np.searchsorted(ends, number, side="right"))
    if episode >= len(lengths):
        return f"step {number}"
    return f"episode {episode}, step {number - int(ends[episode] - lengths[episode])}"
