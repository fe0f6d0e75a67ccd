"""Where a LeRobot dataset keeps what: ``meta/info.json``, the tables of episodes and tasks, and the names of its files.

Versions 2.0 and 2.1 have one file an episode and JSON lines; version 3.0 has many episodes a file and parquet tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.parquet_columns import read_table
from vla_ft.errors import UserError

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
VISUAL = ("image", "video")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One entry of ``features``: ``shape`` as stored, ``names`` as written there (a list, a table or nothing)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    depth: bool = False

    @property
    def width(self) -> int:
        """Numbers a step."""
        return math.prod(self.shape)

    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of a colour camera; None for what is none (depth, masks). Either channel order is met."""
        if self.dtype not in VISUAL or self.depth or len(self.shape) != 3:
            return None
        axes = [str(n).removesuffix("s") for n in self.names] if isinstance(self.names, list) else []
        channel = axes.index("channel") if "channel" in axes else (2 if self.shape[2] == 3 else 0)
        if self.shape[channel] != 3:
            return None
        height, width = (n for axis, n in enumerate(self.shape) if axis != channel)
        return height, width


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What ``meta/info.json`` says. ``episodes`` and ``frames`` are its totals."""

    root: Path
    version: str
    fps: float
    features: dict[str, Feature]
    episodes: int
    frames: int
    chunks_size: int
    data_path: str
    video_path: str | None

    @property
    def many_per_file(self) -> bool:
        """Whether a file holds many episodes (3.0)."""
        return self.version == "v3.0"


@dataclass(frozen=True, kw_only=True)
class EpisodeTable:
    """Episodes in the order of their numbers; int64 [E] unless said. ``chunk`` and ``file`` name the data file.

    ``first_index`` is the global index of the first step. ``videos``: by feature (chunk, file, seconds at which the
    episode begins in that file, float64).
    """

    number: np.ndarray
    lengths: np.ndarray
    first_index: np.ndarray
    chunk: np.ndarray
    file: np.ndarray
    videos: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def load_info(root: Path) -> DatasetInfo:
    """Read ``meta/info.json``. Raises UserError for a version that is not supported and for damaged entries."""
    path = root / INFO
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read {path}: {error}. Expected the JSON of a LeRobot dataset; copy it again."
        ) from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} holds a {type(raw).__name__}, expected the JSON object of a LeRobot dataset; copy it again."
        )
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise UserError(
            f"{root} is a LeRobot dataset of version {version}, and supported are {', '.join(VERSIONS)}: convert it "
            "with LeRobot's own tools."
        )
    try:
        info = DatasetInfo(
            root=root,
            version=version,
            fps=float(raw["fps"]),
            features={str(name): _feature(str(name), entry) for name, entry in raw["features"].items()},
            episodes=int(raw["total_episodes"]),
            frames=int(raw["total_frames"]),
            chunks_size=int(raw.get("chunks_size") or 1000),
            data_path=str(raw["data_path"]),
            video_path=None if raw.get("video_path") is None else str(raw["video_path"]),
        )
        _check_info(info)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged: {type(error).__name__}: {error}. Expected what LeRobot {version} writes there; copy "
            "the dataset again."
        ) from error
    return info


def data_file(info: DatasetInfo, chunk: int, file: int) -> Path:
    """The parquet file of a chunk; in 2.x ``file`` is the episode's number."""
    return info.root / info.data_path.format(
        chunk_index=chunk, file_index=file, episode_chunk=chunk, episode_index=file
    )


def video_file(info: DatasetInfo, feature: str, chunk: int, file: int) -> Path:
    """The mp4 file of a camera's chunk; in 2.x ``file`` is the episode's number."""
    assert info.video_path is not None
    return info.root / info.video_path.format(
        video_key=feature, chunk_index=chunk, file_index=file, episode_chunk=chunk, episode_index=file
    )


def load_episodes(info: DatasetInfo) -> EpisodeTable:
    """Read the table of episodes. Raises UserError when it is damaged or disagrees with ``meta/info.json``."""
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    _refuse_other_layout(info)
    table = _episodes_v3(info, videos) if info.many_per_file else _episodes_v2(info, videos)
    where = f"{info.root}/meta"
    if len(np.unique(table.number)) != len(table.number) or (table.number < 0).any():
        raise UserError(f"{where}: the table of episodes names an episode twice, or a negative one. Copy it again.")
    if (table.lengths < 1).any():
        bad = int(table.number[np.argmax(table.lengths < 1)])
        raise UserError(f"{where}: episode {bad} has {table.lengths.min()} steps, expected at least 1. Copy it again.")
    for what, seen, said in (
        ("episodes", len(table.number), info.episodes),
        ("steps", int(table.lengths.sum()), info.frames),
    ):
        if seen != said:
            raise UserError(
                f"{where}: the table of episodes has {seen} {what}, but info.json says {said}. The dataset is not "
                "whole: copy it again."
            )
    return table


def load_tasks(info: DatasetInfo) -> dict[int, str]:
    """Instructions by ``task_index``. Indices may have gaps; info.json's ``total_tasks`` is not relied on."""
    if info.many_per_file:
        path = info.root / "meta" / "tasks.parquet"
        table = read_table(path, ("task_index",), optional=("task", "__index_level_0__"))
        texts = table.get("task", table.get("__index_level_0__"))
        pairs = [] if texts is None else list(zip(table["task_index"], texts, strict=True))
    else:
        path = info.root / "meta" / "tasks.jsonl"
        pairs = [(entry.get("task_index"), entry.get("task")) for entry in _json_lines(path)]
    tasks: dict[int, str] = {}
    for index, text in pairs:
        if not isinstance(index, int | np.integer) or not isinstance(text, str) or int(index) in tasks:
            raise UserError(f"{path}: task {index!r} is {text!r}, expected a text for each number. Copy it again.")
        tasks[int(index)] = text
    if not tasks:
        raise UserError(f"{path} names no task, expected at least one. Copy it again.")
    return tasks


def _feature(name: str, entry: dict[str, Any]) -> Feature:
    facts = entry.get("info") or entry.get("video_info") or {}
    depth = bool(facts.get("is_depth_map") or facts.get("video.is_depth_map"))
    shape = tuple(int(n) for n in entry["shape"])
    if any(n < 0 for n in shape):
        raise ValueError(f"feature {name} has shape {shape}")
    return Feature(name=name, dtype=str(entry["dtype"]), shape=shape, names=entry.get("names"), depth=depth)


def _check_info(info: DatasetInfo) -> None:
    if not (math.isfinite(info.fps) and info.fps > 0):
        raise ValueError(f"fps is {info.fps}")
    if info.chunks_size < 1 or info.episodes < 1:
        raise ValueError(f"chunks_size is {info.chunks_size}, total_episodes is {info.episodes}")
    videos = [f.name for f in info.features.values() if f.dtype == "video"]
    if videos and info.video_path is None:
        raise ValueError(f"video_path is null, but {videos[0]} is a video")
    if len({data_file(info, 0, 0), data_file(info, 0, 1)}) < 2:
        raise ValueError(f"data_path '{info.data_path}' does not tell files apart")
    _refuse_outside(info, "data_path", data_file(info, 0, 0))
    for name in videos:
        _refuse_outside(info, "video_path", video_file(info, name, 0, 0))


def _refuse_other_layout(info: DatasetInfo) -> None:
    """Where a dataset was converted by half, or its version written by hand."""
    tables = {"v3.0": info.root / "meta" / "episodes", "v2.1": info.root / "meta" / "episodes.jsonl"}
    own = "v3.0" if info.many_per_file else "v2.1"
    other = "v2.1" if info.many_per_file else "v3.0"
    if tables[other].exists() and not tables[own].exists():
        raise UserError(
            f"{info.root / INFO} says {info.version}, but the files are laid out as {other}: there is {tables[other]} "
            f"and no {tables[own].name}. Copy the dataset again, or convert it again with LeRobot's own tools."
        )


def _refuse_outside(info: DatasetInfo, key: str, file: Path) -> None:
    """A pattern, or a feature's name in it, must not lead to other files of this machine."""
    if not file.is_relative_to(info.root) or ".." in file.relative_to(info.root).parts:
        raise ValueError(f"{key} '{getattr(info, key)}' leaves the dataset: {file}")


def _episodes_v2(info: DatasetInfo, videos: list[str]) -> EpisodeTable:
    path = info.root / "meta" / "episodes.jsonl"
    try:
        rows = np.array([(int(e["episode_index"]), int(e["length"])) for e in _json_lines(path)], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}. Copy it again.") from error
    rows = rows.reshape(-1, 2)
    number, lengths = rows[np.argsort(rows[:, 0], kind="stable")].T
    chunk, begins = number // info.chunks_size, np.zeros(len(number))
    return EpisodeTable(
        number=number,
        lengths=lengths,
        first_index=np.cumsum(lengths) - lengths,
        chunk=chunk,
        file=number,
        videos=dict.fromkeys(videos, (chunk, number, begins)),
    )


def _episodes_v3(info: DatasetInfo, videos: list[str]) -> EpisodeTable:
    folder = info.root / "meta" / "episodes"
    paths = sorted(folder.glob("chunk-*/file-*.parquet"), key=lambda p: (_digits(p.parent.name), _digits(p.stem)))
    if not paths:
        raise UserError(
            f"No table of episodes in {folder}. Expected chunk-000/file-000.parquet; copy the dataset again."
        )
    columns = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    for name in videos:
        columns += [f"videos/{name}/{what}" for what in ("chunk_index", "file_index", "from_timestamp")]
    parts = [read_table(path, columns) for path in paths]
    joined = {c: np.concatenate([np.asarray(part[c]) for part in parts]) for c in columns}
    for name, values in joined.items():
        kind = np.float64 if name.endswith("timestamp") else np.int64
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (values < 0).any():
            raise UserError(f"{folder}: column {name} is not a column of numbers from 0. Copy the dataset again.")
        joined[name] = values.astype(kind)
    order = np.argsort(joined["episode_index"], kind="stable")
    number, lengths, first, chunk, file = (joined[c][order] for c in columns[:5])
    return EpisodeTable(
        number=number,
        lengths=lengths,
        first_index=first,
        chunk=chunk,
        file=file,
        videos={
            name: (
                joined[f"videos/{name}/chunk_index"][order],
                joined[f"videos/{name}/file_index"][order],
                joined[f"videos/{name}/from_timestamp"][order],
            )
            for name in videos
        },
    )


def _digits(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return (int(digits) if digits else -1, name)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open() as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}, line {number} is no JSON: {error}. Copy the dataset again.") from error
                if not isinstance(entry, dict):
                    raise UserError(f"{path}, line {number} is no JSON object. Copy the dataset again.")
                yield entry
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {error}. Copy the dataset again.") from error
