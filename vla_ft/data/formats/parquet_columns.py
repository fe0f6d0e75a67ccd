"""Columns of numbers from parquet files, checked: as wide as promised, without gaps, with damage told in words."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla_ft.data.formats.damage import refuse_failing_disk
from vla_ft.errors import UserError

_BATCH = 65536
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError, OverflowError, struct.error)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Whatever goes wrong while reading ``path`` becomes a UserError that names it."""
    try:
        yield
    except _DAMAGE as error:
        seen = "it does not exist" if not path.exists() else f"{path.stat().st_size} bytes, and {error}"
        raise UserError(f"Cannot read {path}: {seen}. Expected a whole parquet file: copy it again.") from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open for reading, with page checksums verified where the file has them. Call it inside ``explained``.

    Not memory-mapped: a file that shrinks under a map kills the process.
    """
    return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """A small table, column by column: numbers as NumPy [rows], texts as lists. Raises UserError for damage."""
    with explained(path), open_parquet(path) as file:
        present = [c for c in (*columns, *optional) if c in file.schema_arrow.names]
        _refuse_missing(path, columns, present)
        table = file.read(columns=present, use_threads=False)
        result: dict[str, Any] = {}
        for name in present:
            column = table.column(name)
            if column.null_count:
                raise ValueError(f"column {name} has {column.null_count} empty entries")
            texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            result[name] = column.to_pylist() if texts else column.to_numpy()
        return result


@dataclass(frozen=True)
class BadRows:
    """Rows of a file, [start, stop), that cannot be read, and why."""

    start: int
    stop: int
    why: str


def read_numbers(path: Path, columns: Mapping[str, int]) -> tuple[dict[str, np.ndarray], list[BadRows]]:
    """Columns of ``path`` as [rows, width], in the file's own number types; images in it are not touched.

    ``columns`` maps a name to its width. Where one of several row groups is damaged, its rows are zeros and are named
    beside. Raises UserError for a file that is missing or damaged throughout, and for a column that is missing, has
    gaps or another width.
    """
    with explained(path), open_parquet(path) as file:
        _refuse_missing(path, columns, file.schema_arrow.names)
        groups = range(file.metadata.num_row_groups)
        try:
            return _read_groups(file, groups, columns), []
        except _DAMAGE as error:
            refuse_failing_disk(error)
            if len(groups) < 2:
                raise
        parts: list[dict[str, np.ndarray]] = []
        bad: list[BadRows] = []
        start = 0
        for group in groups:
            rows = file.metadata.row_group(group).num_rows
            try:
                parts.append(_read_groups(file, [group], columns))
            except _DAMAGE as error:
                refuse_failing_disk(error)
                bad.append(BadRows(start, start + rows, str(error)))
                parts.append({name: np.zeros((rows, width), np.int8) for name, width in columns.items()})
            start += rows
        if len(bad) == len(groups):
            raise ValueError(bad[0].why)
        return {name: np.concatenate([part[name] for part in parts]) for name in columns}, bad


def _read_groups(file: pq.ParquetFile, groups: Sequence[int], columns: Mapping[str, int]) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    rows, promised = 0, sum(file.metadata.row_group(group).num_rows for group in groups)
    # "action" also selects a column "action.x", so columns are taken by name below.
    for batch in file.iter_batches(
        batch_size=_BATCH, row_groups=list(groups), columns=list(columns), use_threads=False
    ):
        rows += batch.num_rows
        for name, width in columns.items():
            parts[name].append(_numbers(name, batch.column(name), width))
    if rows != promised:
        raise ValueError(f"it has {rows} rows where its footer says {promised}")
    return {
        name: np.concatenate(part) if part else np.empty((0, columns[name]), np.float32) for name, part in parts.items()
    }


def _numbers(name: str, column: pa.Array, width: int) -> np.ndarray:
    rows = len(column)
    while (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    ):
        if column.null_count:
            break
        sizes = pc.list_value_length(column)
        if rows and pc.min(sizes).as_py() != pc.max(sizes).as_py():
            raise ValueError(f"column {name} has rows of {pc.min(sizes)} to {pc.max(sizes)} numbers, expected {width}")
        column = column.flatten()
    if column.null_count:
        raise ValueError(f"column {name} has {column.null_count} empty entries")
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"column {name} holds {column.type}, expected numbers")
    if len(values) != rows * width:
        raise ValueError(f"column {name} has {len(values) / max(rows, 1):g} numbers a row, expected {width}")
    return values.reshape(rows, width)


def _refuse_missing(path: Path, wanted: Sequence[str] | Mapping[str, int], present: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            raise UserError(f"{path} has no column '{name}'. It has: {', '.join(present)}. Copy the dataset again.")
