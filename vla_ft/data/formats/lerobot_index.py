"""The index of a LeRobot dataset: its numbers in flat files that workers map, and where its encoded images lie.

Made in one pass that reads columns of numbers and page headers, and kept in a cache folder under the identity (names,
sizes, times) of its files. That pass also checks every row against the table of episodes. What it finds wrong is kept
by episode and told when the episode is read, so that a tool can leave damaged episodes out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_ft.data.formats.kept import cache_folder
from vla_ft.data.formats.lerobot_layout import DatasetInfo, EpisodeTable, data_file
from vla_ft.data.formats.open_descriptors import OpenDescriptors
from vla_ft.data.formats.parquet_columns import read_numbers
from vla_ft.data.formats.parquet_pages import PAGE_FIELDS, index_values
from vla_ft.errors import UserError

TOLERANCE = 1e-4
"""Seconds by which a timestamp may differ from frame_index / fps."""
_GENERATION = 1  # raise it when an index is made differently
_BOOK = "index.json"
_OPEN_ARRAYS = 16


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """What an index is made of. ``columns``: the features that are joined, by key; ``images``: the cameras whose images
    are in parquet."""

    info: DatasetInfo
    table: EpisodeTable
    tasks: Mapping[int, str]
    columns: dict[str, tuple[str, ...]]
    images: tuple[str, ...]

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int64 [E]: the flat row of each episode's first step."""
        return np.cumsum(self.table.lengths) - self.table.lengths

    def files(self) -> list[tuple[int, int]]:
        """(chunk, file) of every data file, in their order."""
        pairs = np.unique(np.stack([self.table.chunk, self.table.file], axis=1), axis=0)
        return [(int(c), int(f)) for c, f in pairs]

    def identity(self) -> str:
        """Hash (hex) of names, sizes and times of every file whose contents enter, and of the choice of columns."""
        digest = hashlib.sha256(f"{_GENERATION} {self.info} {self.columns} {self.images} {dict(self.tasks)}".encode())
        for values in (
            self.table.number,
            self.table.lengths,
            self.table.first_index,
            self.table.chunk,
            self.table.file,
        ):
            digest.update(np.ascontiguousarray(values).tobytes())
        for chunk, file in self.files():
            try:
                seen = os.stat(data_file(self.info, chunk, file))
                digest.update(f"{seen.st_size} {seen.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(b"missing\n")
        return digest.hexdigest()


class LeRobotIndex:
    """``action`` and ``proprio`` float32 [N, width], ``timestamp`` float32 [N], ``task`` int32 [N]; for camera k with
    images in parquet ``place_k`` int64 [N, 3] (page, offset, length; see ``ValueIndex``), with the ``pages`` and
    ``blocks`` of all; and ``damage``: episode -> a sentence.

    With a folder, rows are read from it when asked for (mapped files would stay resident); without, the arrays are in
    memory and travel along when pickled.
    """

    def __init__(
        self,
        folder: Path | None,
        arrays: dict[str, np.ndarray],
        damage: dict[int, str],
        fingerprint: str,
    ) -> None:
        self.folder, self.damage, self.fingerprint = folder, damage, fingerprint
        self._arrays = arrays
        self._files = OpenDescriptors(_OPEN_ARRAYS)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``[start, stop)`` of an array, a copy. Raises UserError when the cache was removed meanwhile."""
        whole = self.array(name)
        if not isinstance(whole, np.memmap):
            return whole[start:stop].copy()
        rows = np.empty((stop - start, *whole.shape[1:]), whole.dtype)
        size = rows.nbytes // max(1, len(rows))
        try:
            read = os.preadv(self._files.get(Path(str(whole.filename))), [rows.data], whole.offset + start * size)
        except OSError as error:
            raise self._gone(error) from error
        if read != rows.nbytes:
            raise self._gone(f"{name} ends early")
        return rows

    def array(self, name: str) -> np.ndarray:
        """A whole array by name, mapped where there is a folder. Raises UserError like ``rows``."""
        if name not in self._arrays:
            assert self.folder is not None
            try:
                self._arrays[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            except (OSError, ValueError) as error:
                raise self._gone(error) from error
        return self._arrays[name]

    def _gone(self, error: object) -> UserError:
        return UserError(f"The index at {self.folder} is gone or damaged: {error}. Remove that folder and start again.")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arrays": {} if self.folder is not None else self._arrays}


def open_index(plan: IndexPlan, cache: Path | None = None) -> LeRobotIndex:
    """The index of ``plan``: from the cache when it fits the files as they are, otherwise made now and kept there.

    A cache that cannot be written is no mistake: the numbers then stay in this process' memory.
    """
    parent = cache or cache_folder()
    # Readers of other columns or cameras keep indexes of their own, or each would remove what the other reads.
    choice = f"{plan.info.root.resolve()} {plan.columns} {plan.images}"
    place = hashlib.sha256(choice.encode()).hexdigest()[:16]
    folder = parent / "lerobot" / f"{place}-{plan.identity()[:24]}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return _load(folder, plan)
    unfinished = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{place}-", dir=folder.parent))
        space = shutil.disk_usage(unfinished).free
        if space < 2 * sum(np.dtype(kind).itemsize * int(np.prod(shape)) for shape, kind in _shapes(plan).values()):
            raise OSError("too little space for an index")
        index = _build(plan, unfinished)
        return _publish(unfinished, folder, plan) or LeRobotIndex(folder, {}, index.damage, index.fingerprint)
    except OSError:
        return _build(plan, None)
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _load(folder: Path, plan: IndexPlan) -> LeRobotIndex:
    book = json.loads((folder / _BOOK).read_text())
    index = LeRobotIndex(folder, {}, {int(k): str(v) for k, v in book["damage"].items()}, book["fingerprint"])
    for name, (shape, kind) in _shapes(plan).items():
        mapped = np.load(folder / f"{name}.npy", mmap_mode="r")
        if mapped.shape != shape or mapped.dtype != kind:
            raise ValueError(f"{name} is {mapped.dtype} {mapped.shape}")
        index._arrays[name] = mapped
    return index


def _publish(unfinished: Path, folder: Path, plan: IndexPlan) -> LeRobotIndex | None:
    """Rename into place; what is there already and can be loaded stays, and is returned: others may be reading it."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return _load(folder, plan)
        aside = Path(tempfile.mkdtemp(prefix=f"{unfinished.name}-", dir=folder.parent))
        try:
            os.rename(folder, aside / folder.name)
            os.rename(unfinished, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    for other in folder.parent.glob(f"{folder.name.split('-')[0]}-*"):
        if other != folder:  # of the same choice from the same dataset, as it was before
            shutil.rmtree(other, ignore_errors=True)
    return None


def _shapes(plan: IndexPlan) -> dict[str, tuple[tuple[int, ...], type]]:
    steps = int(plan.table.lengths.sum())
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        key: ((steps, sum(plan.info.features[name].width for name in names)), np.float32)
        for key, names in plan.columns.items()
    }
    return (
        shapes
        | {
            "timestamp": ((steps,), np.float32),
            "task": ((steps,), np.int32),
        }
        | {f"place_{number}": ((steps, 3), np.int64) for number in range(len(plan.images))}
    )


def _build(plan: IndexPlan, folder: Path | None) -> LeRobotIndex:
    arrays: dict[str, np.ndarray] = {}
    for name, (shape, kind) in _shapes(plan).items():
        arrays[name] = (
            np.empty(shape, kind)
            if folder is None
            else np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
        )
    damage: dict[int, str] = {}
    pages: list[np.ndarray] = [np.empty((0, len(PAGE_FIELDS)), np.int64)]
    blocks: list[np.ndarray] = [np.empty(0, np.int64)]
    for chunk, file, episodes in _by_file(plan):
        try:
            firsts = _index_file(plan, chunk, file, episodes, arrays, damage)
            for number in range(len(plan.images)):
                _index_images(plan, chunk, file, number, firsts, arrays, pages, blocks)
        except UserError as error:
            if getattr(error.__cause__, "errno", None) not in (None, errno.ENOENT):
                raise  # the disk or the network, not the file: the next opening may find it whole
            damage.update((int(e), str(error)) for e in episodes if int(e) not in damage)
    arrays |= {"pages": np.concatenate(pages), "blocks": np.concatenate(blocks)}
    fingerprint = _fingerprint(plan, arrays, damage)
    if folder is not None:
        for name, values in arrays.items():
            if isinstance(values, np.memmap):
                values.flush()
            else:
                np.save(folder / f"{name}.npy", values)
        (folder / _BOOK).write_text(json.dumps({"damage": damage, "fingerprint": fingerprint}))
    return LeRobotIndex(folder, arrays, damage, fingerprint)


def _by_file(plan: IndexPlan) -> Iterator[tuple[int, int, np.ndarray]]:
    """(chunk, file, its episodes) in the order of the files."""
    table = plan.table
    order = np.lexsort((table.first_index, table.file, table.chunk))
    changes = np.flatnonzero(np.diff(table.chunk[order]) | np.diff(table.file[order])) + 1
    for episodes in np.split(order, changes):
        yield int(table.chunk[episodes[0]]), int(table.file[episodes[0]]), episodes


def _index_file(
    plan: IndexPlan,
    chunk: int,
    file: int,
    episodes: np.ndarray,
    arrays: dict[str, np.ndarray],
    damage: dict[int, str],
) -> dict[int, int]:
    """Copy the numbers of a data file to the places of its episodes, checking each: episode -> its first row there."""
    path = data_file(plan.info, chunk, file)
    widths = {name: plan.info.features[name].width for names in plan.columns.values() for name in names}
    numbers, bad = read_numbers(
        path, widths | dict.fromkeys(("timestamp", "frame_index", "episode_index", "index", "task_index"), 1)
    )
    flat = {name: values[:, 0] for name, values in numbers.items() if name not in widths}
    for one in bad:
        flat["episode_index"][one.start : one.stop] = -1
    begin = int(plan.table.first_index[episodes].min())
    owners, firsts, counts = np.unique(flat["episode_index"], return_index=True, return_counts=True)
    found = {int(o): (int(f), int(c)) for o, f, c in zip(owners, firsts, counts, strict=True)}
    firsts_of: dict[int, int] = {}
    for episode in episodes:
        first, count = found.get(int(plan.table.number[episode]), (0, 0))
        rows_of, start = slice(first, first + count), int(plan.starts[episode])
        wrong = _misfit(plan, int(episode), count, {name: values[rows_of] for name, values in flat.items()})
        first_row = int(plan.table.first_index[episode]) - begin
        last_row = first_row + int(plan.table.lengths[episode]) - 1
        if unread := next((one for one in bad if one.start <= last_row and first_row < one.stop), None):
            damage[int(episode)] = (
                f"{path}: episode {plan.table.number[episode]}: rows {first_row} to {last_row} cannot be read: "
                f"{unread.why}. Copy the file again."
            )
            continue
        if wrong:
            damage[int(episode)] = f"{path}: episode {plan.table.number[episode]} {wrong}"
            continue
        place = slice(start, start + count)
        for key, names in plan.columns.items():
            arrays[key][place] = np.concatenate([numbers[name][rows_of] for name in names], axis=1)
        arrays["timestamp"][place] = flat["timestamp"][rows_of]
        arrays["task"][place] = flat["task_index"][rows_of]
        firsts_of[int(episode)] = first
    return firsts_of


def _index_images(
    plan: IndexPlan,
    chunk: int,
    file: int,
    number: int,
    firsts: dict[int, int],
    arrays: dict[str, np.ndarray],
    pages: list[np.ndarray],
    blocks: list[np.ndarray],
) -> None:
    """Note where the images of camera ``number`` lie in a data file."""
    index = index_values(data_file(plan.info, chunk, file), f"{plan.images[number]}.bytes")
    page, block = sum(map(len, pages)), sum(map(len, blocks))
    places = np.stack([index.page + page, index.offset, index.length], axis=1)
    for episode, first in firsts.items():
        start, length = int(plan.starts[episode]), int(plan.table.lengths[episode])
        arrays[f"place_{number}"][start : start + length] = places[first : first + length]
    index.pages[index.pages[:, -1] >= 0, -1] += block
    pages.append(index.pages)
    blocks.append(index.blocks)


def _misfit(plan: IndexPlan, episode: int, count: int, rows: dict[str, np.ndarray]) -> str:
    """What is wrong with an episode's rows, or nothing."""
    length = int(plan.table.lengths[episode])
    if count != length:
        return f"has {count} rows where the table of episodes says {length}. Copy the dataset again."
    steps = np.arange(length)
    expected = {"episode_index": np.full(length, plan.table.number[episode]), "frame_index": steps}
    if plan.info.many_per_file:
        expected["index"] = plan.table.first_index[episode] + steps
    for name, values in expected.items():
        bad = np.flatnonzero(rows[name] != values)
        if len(bad):
            step = int(bad[0])
            return f"has {name} {rows[name][step]} at step {step}, expected {values[step]}. Copy the dataset again."
    times = rows["timestamp"].astype(np.float64)
    slack = TOLERANCE + np.spacing(np.abs(rows["timestamp"].astype(np.float32))).astype(np.float64)
    bad = np.flatnonzero(~(np.abs(times - steps / plan.info.fps) <= slack))
    if len(bad):
        step = int(bad[0])
        return (
            f"has timestamp {times[step]:.4f} s at step {step}, expected {step / plan.info.fps:.4f} s at "
            f"{plan.info.fps:g} steps a second. Leave the episode out, or record it again."
        )
    bad = np.flatnonzero(~np.isin(rows["task_index"], list(plan.tasks)))
    if len(bad):
        return f"has task_index {rows['task_index'][bad[0]]} at step {bad[0]}, which the table of tasks does not name."
    return ""


def _fingerprint(plan: IndexPlan, arrays: dict[str, np.ndarray], damage: dict[int, str]) -> str:
    """Hash of lengths and all action and proprio values, whatever the version or the files: copies keep statistics."""
    digest = hashlib.sha256(b"lerobot")
    for episode, (start, length) in enumerate(zip(plan.starts, plan.table.lengths, strict=True)):
        digest.update(f"{length} {episode in damage}".encode())
        if episode not in damage:
            for key in plan.columns:
                digest.update(np.ascontiguousarray(arrays[key][start : start + length]).tobytes())
    return digest.hexdigest()
