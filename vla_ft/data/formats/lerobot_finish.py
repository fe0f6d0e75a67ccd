"""From committed episodes to a published LeRobot dataset. Every step may be interrupted, and is then done again or
found done: a file that has its name is whole.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vla_ft.data.formats.lerobot_plan import (
    DATA_PATHS,
    VIDEO_PATHS,
    FileGroup,
    WriterPlan,
    episode_folder,
    group_files,
    read_records,
)
from vla_ft.data.formats.lerobot_statistics import Aggregate
from vla_ft.data.formats.lerobot_tables import EpisodesFile, camera_key, join_steps, write_meta, write_tasks
from vla_ft.data.formats.video_encoding import join_videos
from vla_ft.data.formats.writing import sync


def publish_v3(plan: WriterPlan, tasks: Sequence[str], schema: pa.Schema) -> None:
    """Join episodes to the files of version 3.0 and write its tables."""
    records = list(_without_stats(plan))
    lengths = [r["length"] for r in records]
    data = group_files([r["data_bytes"] for r in records], plan.data_megabytes, plan.chunks_size)
    for group in data:
        staged = [episode_folder(plan, e) / "data.parquet" for e in range(group.first, group.last)]
        target = plan.folder / DATA_PATHS["v3.0"].format(chunk_index=group.chunk, file_index=group.file)
        _publish(staged, target, functools.partial(join_steps, staged, schema=schema))
    videos: dict[str, list[FileGroup]] = {}
    for place, camera in enumerate(plan.cameras if plan.video else ()):
        sizes = [r["video_bytes"][place] for r in records]
        videos[camera] = group_files(sizes, plan.video_megabytes, plan.chunks_size)
        for group in videos[camera]:
            staged = [episode_folder(plan, e) / f"{place}.mp4" for e in range(group.first, group.last)]
            target = plan.folder / VIDEO_PATHS["v3.0"].format(
                video_key=camera_key(camera), chunk_index=group.chunk, file_index=group.file
            )
            frames = lengths[group.first : group.last]
            _publish(staged, target, functools.partial(join_videos, staged, frames, plan.fps))
    meta = plan.folder / "meta"
    table = meta / "episodes" / "chunk-000" / "file-000.parquet"
    _publish([], table, functools.partial(_write_episodes, plan, data, videos))
    _publish([], meta / "tasks.parquet", functools.partial(write_tasks, tasks))
    write_meta(meta / "stats.json", _aggregate(plan))
    write_meta(meta / "info.json", _info(plan, lengths, tasks))


def publish_v2(plan: WriterPlan, tasks: Sequence[str], schema: pa.Schema) -> None:
    """Move episodes to the files of version 2.1 and write its tables."""
    lengths = []
    for episode, record in enumerate(_without_stats(plan)):
        lengths.append(record["length"])
        names = {"episode_chunk": episode // plan.chunks_size, "episode_index": episode}
        pairs = [("data.parquet", DATA_PATHS["v2.1"].format(**names))]
        for place, camera in enumerate(plan.cameras if plan.video else ()):
            pairs.append((f"{place}.mp4", VIDEO_PATHS["v2.1"].format(video_key=camera_key(camera), **names)))
        for staged, target in pairs:
            source, place_to = episode_folder(plan, episode) / staged, plan.folder / target
            place_to.parent.mkdir(parents=True, exist_ok=True)
            if source.exists():  # otherwise an interrupted run has moved it
                os.replace(source, place_to)
    meta = plan.folder / "meta"
    episodes = ({"episode_index": n, "tasks": [r["task"]], "length": r["length"]} for n, r in _numbered(plan))
    lines: dict[str, Iterator[dict[str, Any]]] = {
        "tasks.jsonl": ({"task_index": n, "task": task} for n, task in enumerate(tasks)),
        "episodes.jsonl": episodes,
        "episodes_stats.jsonl": ({"episode_index": n, "stats": r["stats"]} for n, r in _numbered(plan)),
    }
    for name, entries in lines.items():
        _publish([], meta / name, functools.partial(_write_lines, entries))
    write_meta(meta / "info.json", _info(plan, lengths, tasks))


def _without_stats(plan: WriterPlan) -> Iterator[dict[str, Any]]:
    for record in read_records(plan):
        yield {key: value for key, value in record.items() if key != "stats"}


def _numbered(plan: WriterPlan) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(read_records(plan))


def _publish(staged: Sequence[Path], target: Path, write: Callable[[Path], None]) -> None:
    """Make ``target`` unless it is there, then remove the staged files that went into it."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.unfinished")
        write(unfinished)
        sync(unfinished)
        os.replace(unfinished, target)
        sync(target.parent)
    for path in staged:
        path.unlink(missing_ok=True)


def _write_lines(entries: Iterator[dict[str, Any]], path: Path) -> None:
    with path.open("w") as file:
        for entry in entries:
            file.write(json.dumps(entry) + "\n")


def _write_episodes(
    plan: WriterPlan, data: Sequence[FileGroup], videos: dict[str, list[FileGroup]], path: Path
) -> None:
    table = EpisodesFile(path)
    begin = 0
    elapsed = dict.fromkeys(videos, 0)
    for episode, record in enumerate(read_records(plan)):
        length = record["length"]
        group = _group_of(data, episode)
        row: dict[str, Any] = {
            "episode_index": episode,
            "tasks": [record["task"]],
            "length": length,
            "data/chunk_index": group.chunk,
            "data/file_index": group.file,
            "dataset_from_index": begin,
            "dataset_to_index": begin + length,
        }
        for camera, groups in videos.items():
            group, key = _group_of(groups, episode), f"videos/{camera_key(camera)}"
            elapsed[camera] = 0 if group.first == episode else elapsed[camera]
            row |= {
                f"{key}/chunk_index": group.chunk,
                f"{key}/file_index": group.file,
                f"{key}/from_timestamp": elapsed[camera] / plan.fps,
                f"{key}/to_timestamp": (elapsed[camera] + length) / plan.fps,
            }
            elapsed[camera] += length
        for feature, stats in record["stats"].items():
            row |= {f"stats/{feature}/{name}": value for name, value in stats.items()}
        table.add(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        begin += length
    table.close()


def _group_of(groups: Sequence[FileGroup], episode: int) -> FileGroup:
    return groups[bisect.bisect_right(groups, episode, key=lambda group: group.first) - 1]


def _aggregate(plan: WriterPlan) -> dict[str, dict[str, Any]]:
    aggregate = Aggregate()
    for record in read_records(plan):
        aggregate.add(record["stats"])
    return aggregate.result()


def _info(plan: WriterPlan, lengths: Sequence[int], tasks: Sequence[str]) -> dict[str, Any]:
    version, episodes = plan.version, len(lengths)
    info: dict[str, Any] = {
        "codebase_version": version,
        "robot_type": plan.robot_type,
        "total_episodes": episodes,
        "total_frames": sum(lengths),
        "total_tasks": len(tasks),
    }
    if version == "v2.1":
        info["total_videos"] = episodes * len(plan.cameras) if plan.video else 0
        info["total_chunks"] = -(-episodes // plan.chunks_size)
    info["chunks_size"] = plan.chunks_size
    if version == "v3.0":
        info["data_files_size_in_mb"] = plan.data_megabytes
        info["video_files_size_in_mb"] = plan.video_megabytes
    return info | {
        "fps": int(plan.fps) if float(plan.fps).is_integer() else plan.fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATHS[version],
        "video_path": VIDEO_PATHS[version] if plan.video else None,
        "features": plan.features,
    }
