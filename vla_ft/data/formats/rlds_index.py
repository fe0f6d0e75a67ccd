"""Which record is which episode: one pass over the shards of a split, kept in a file beside them.

The pass checks every checksum and counts every episode's steps, one record in memory at a time. Afterwards any episode
of any shard is one read away, and opening 100,000 of them takes a file of a few megabytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from vla_ft.data.formats.rlds_layouts import layout_row
from vla_ft.data.formats.tf_example import Feature, WireError, parse_example
from vla_ft.data.formats.tfds_features import FeatureSpec
from vla_ft.data.formats.tfds_folder import TfdsFolder
from vla_ft.data.formats.tfrecord import Record, read_payload, scan
from vla_ft.errors import UserError

_LAYOUT = 3  # raise it when the columns change
_COLUMNS = {
    "shard": np.int32, "number": np.int64, "offset": np.int64, "size": np.int64, "steps": np.int64,
    "layout_at": np.int64, "layout_size": np.int64,
}  # fmt: skip
_CRC, _DAMAGE, _NAMES = "crc", "damage", "names"
_SPOOL = 8 << 20
"""Bytes of layouts that are held in memory while an index is made; more go to a temporary file."""


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Where a split's record layouts are kept (``rlds_layouts``), if they are, and the names of their lists."""

    path: Path | None
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RldsIndex:
    """One row an episode, in the order of the shards. ``number`` counts the records of a shard."""

    shards: tuple[Path, ...]
    shard: np.ndarray
    number: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    steps: np.ndarray
    layout_at: np.ndarray
    layout_size: np.ndarray
    """In bytes; 0 where there is none."""
    crc: np.ndarray
    split: np.ndarray
    """Which of ``layouts`` is an episode's."""
    layouts: tuple[Layouts, ...]
    damage: dict[int, str]
    """Episode -> what is wrong with its record; it counts no steps."""

    def payload(self, episode: int) -> bytes:
        """The record of an episode, its checksum checked. Raises UserError."""
        if episode in self.damage:
            raise UserError(self.damage[episode])
        record = Record(int(self.offset[episode]), int(self.size[episode]), int(self.crc[episode]))
        return read_payload(self.shards[self.shard[episode]], record, int(self.number[episode]))

    def name_of(self, episode: int) -> str:
        """Shard and record, as messages name an episode."""
        return f"{self.shards[self.shard[episode]].name}, record {self.number[episode]}"


def open_index(folder: TfdsFolder, split: str, specs: dict[str, FeatureSpec], tolerant: bool = False) -> RldsIndex:
    """The index of ``split`` (see ``TfdsFolder.select``), made where it is not kept yet or the shards have changed.

    Raises UserError for a damaged record, which ``tolerant`` notes in ``damage`` instead, and for records that are
    missing without a trace.
    """
    parts = []
    for one in folder.select(split):
        identity = _identity(one.shards)
        kept = _load(folder.path, one.name, identity)
        if kept is None:
            with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as rows:
                built = _build(one.shards, one.records, specs, rows)
                kept = built, _save(folder.path, one.name, identity, built, rows)
        parts.append((one.shards, *kept))
    columns = {name: np.concatenate([kept[name] for _, kept, _ in parts]) for name in (*_COLUMNS, _CRC, _DAMAGE)}
    sizes = [len(kept["shard"]) for _, kept, _ in parts]
    firsts = np.cumsum([0] + [len(shards) for shards, _, _ in parts])[:-1]
    columns["shard"] = columns["shard"] + np.repeat(firsts, sizes)
    columns["split"] = np.repeat(np.arange(len(parts)), sizes)
    layouts = tuple(Layouts(path=path, names=tuple(kept[_NAMES].tolist())) for _, kept, path in parts)
    sentences = columns.pop(_DAMAGE)
    damage = {int(episode): str(sentences[episode]) for episode in np.flatnonzero(sentences != "")}
    if damage and not tolerant:
        raise UserError(next(iter(damage.values())))
    shards = tuple(shard for shards, _, _ in parts for shard in shards)
    return RldsIndex(shards=shards, damage=damage, layouts=layouts, **columns)


def step_counter(specs: dict[str, FeatureSpec]) -> Callable[[dict[str, Feature]], int]:
    """How many steps a parsed record has, by the leaf that is cheapest to count: a flag mostly.

    Raises UserError when no leaf has one value of fixed width a step.
    """
    per_step = [s for s in specs.values() if s.per_step and not s.ragged]
    numbers = [(s.width, s.key) for s in per_step if s.kind == "number" and s.encoding == "none" and s.width]
    strings = [(1, s.key) for s in per_step if _one_string(s)]
    if not numbers and not strings:
        raise UserError("features.json has no leaf of fixed width in every step, so the steps cannot be counted.")
    width, key = min(numbers or strings)
    return lambda features: _steps(features[key].count(), width, key)


def _steps(count: int, width: int, key: str) -> int:
    if count % width:
        raise WireError(f"{key} holds {count} values, expected {width} a step")
    return count // width


def _one_string(spec: FeatureSpec) -> bool:
    return spec.encoding != "none" or spec.kind == "image" or (spec.kind == "text" and not spec.shape)


def _build(
    shards: tuple[Path, ...], expected: tuple[int, ...] | None, specs: dict[str, FeatureSpec], layouts: IO[bytes]
) -> dict[str, np.ndarray]:
    """The columns of an index; the records' layouts go to ``layouts``."""
    steps_of = step_counter(specs)
    names: dict[str, int] = {}
    rows: list[tuple[int, ...]] = []
    sentences: list[str] = []
    for place, shard in enumerate(shards):
        found, damaged = _scan_shard(shard, steps_of, names, layouts)
        count = len(found) + len(damaged)
        if expected is not None and damaged:  # a damaged length hides the records behind it
            lost = f"{shard}: this record lies behind a damaged one and cannot be found. Copy the file again."
            damaged |= dict.fromkeys(range(count, expected[place]), lost)
        elif expected is not None and count != expected[place]:
            raise UserError(
                f"{shard} holds {count} records, but dataset_info.json says {expected[place]}. Copy the shard again."
            )
        for number in range(len(found) + len(damaged)):
            record, steps, layout = found.get(number, (Record(0, 0, 0), 0, (0, 0)))
            rows.append((place, number, record.offset, record.size, steps, *layout, record.crc))
            sentences.append(damaged.get(number, ""))
    table = np.array(rows, dtype=np.int64).reshape(-1, len(_COLUMNS) + 1)
    columns = {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(_COLUMNS.items())}
    texts = {_DAMAGE: np.array(sentences, dtype=np.str_), _NAMES: np.array(list(names), dtype=np.str_)}
    return columns | {_CRC: table[:, -1].astype(np.uint32), **texts}


def _scan_shard(
    shard: Path, steps_of: Callable[[dict[str, Feature]], int], names: dict[str, int], layouts: IO[bytes]
) -> tuple[dict[int, tuple[Record, int, tuple[int, int]]], dict[int, str]]:
    """By their number in the shard: the sound records with their steps and where their layout lies in ``layouts``, and
    what is wrong with the others."""
    found: dict[int, tuple[Record, int, tuple[int, int]]] = {}
    damaged: dict[int, str] = {}
    for record, payload in scan(shard, damaged=damaged):
        number = len(found) + len(damaged)
        try:
            features = parse_example(payload)
            steps, row = steps_of(features), layout_row(features, names).tobytes()
            found[number] = (record, steps, (layouts.tell(), len(row)))
            layouts.write(row)
        except (WireError, KeyError) as error:
            damaged[number] = (
                f"{shard}: record {number} is no episode of this dataset: {error}. Expected what features.json "
                "describes: copy the shard again, or remove the dataset."
            )
    return found, damaged


def _identity(shards: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(f"rlds index {_LAYOUT}".encode())
    for shard in shards:
        status = shard.stat()
        digest.update(f"{shard.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _places(folder: Path, split: str, identity: str) -> tuple[tuple[Path, Path], ...]:
    """Where an index and its layouts may lie: beside the shards, or in the user's cache when that is read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_ft" / "rlds"
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    beside, away = f"{split}-{identity[:16]}.bin", f"{key}-{split}-{identity[:16]}.bin"
    return (
        (folder / f".index-{split}.npz", folder / f".layouts-{beside}"),
        (cache / f"{key}-{split}.npz", cache / f"layouts-{away}"),
    )


def _load(folder: Path, split: str, identity: str) -> tuple[dict[str, np.ndarray], Path | None] | None:
    """The index that is kept for exactly these shards, and its layouts. It is a cache: anything else is made again."""
    for path, layouts in _places(folder, split, identity):
        # Whatever a damaged file makes NumPy and zipfile stumble over: there is none then.
        with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as kept:
            if kept["identity"].item() == identity:
                return {name: kept[name] for name in (*_COLUMNS, _CRC, _DAMAGE, _NAMES)}, layouts
    return None


def _save(folder: Path, split: str, identity: str, columns: dict[str, np.ndarray], rows: IO[bytes]) -> Path | None:
    """Keep the index, and before it the layouts that it points into; where those are kept, if anywhere."""
    places = _places(folder, split, identity)

    def write_index(file: IO[bytes]) -> None:
        np.savez(file, identity=np.array(identity), **columns)  # type: ignore[arg-type]

    def write_layouts(file: IO[bytes]) -> None:
        rows.seek(0)
        shutil.copyfileobj(rows, file)

    for path, layouts in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _publish(layouts, write_layouts)
            _publish(path, write_index)
        except OSError:
            continue
        for old in set(path.parent.glob(f"{layouts.name[:-20]}*.bin")) - {layouts}:
            old.unlink(missing_ok=True)  # of shards that are gone
        return layouts
    warnings.warn(
        f"The index of {folder} can be kept neither at {places[0][0]} nor at {places[1][0]}: every process makes it "
        "again, and samples cost their whole record.",
        stacklevel=2,
    )
    return None


def _publish(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """A whole file or none. Raises OSError."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with unfinished.open("wb") as file:
            write(file)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
