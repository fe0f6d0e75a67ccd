"""Time to the first sample and resident memory of LeRobot datasets of 1 to 100,000 episodes, each in a fresh process.

    python benchmarks/lerobot_many_episodes.py FOLDER RESULT.json

Version 3.0, ten steps an episode, a small picture in parquet a step. ``indexing``: the first opening, which makes the
index; ``opening``: later ones with the first sample; ``resident``: after 3,000 random samples.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LENGTH, PER_FILE = 10, 10_000
COUNTS = (1, 1_000, 100_000)


def write(path: Path, episodes: int) -> None:
    """A dataset, written in bulk."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from vla_ft.data.formats.lerobot_tables import feature_table, schema_of, write_meta, write_tasks
    from vla_ft.data.sample import DatasetDescription

    joints = tuple(f"joint_{i}" for i in range(14))
    description = DatasetDescription(
        name="many",
        cameras={"top": (32, 32)},
        action_names=joints,
        action_units=joints,
        proprio_names=joints,
        proprio_units=joints,
        action_kind="joint",
        action_mode="absolute",
        gripper="unknown",
        fps=10.0,
    )
    features = feature_table(description, None)
    schema, stream = schema_of(features, "List"), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
    picture = {"bytes": stream.getvalue(), "path": "frame.png"}
    for first in range(0, episodes, PER_FILE):
        count = min(PER_FILE, episodes - first)
        rows, number = count * LENGTH, np.arange(first, first + count)
        frame = np.tile(np.arange(LENGTH), count)
        values = pa.array(np.random.default_rng(first).normal(size=rows * 14).astype(np.float32))
        columns = {
            "observation.state": pa.FixedSizeListArray.from_arrays(values, 14),
            "action": pa.FixedSizeListArray.from_arrays(values, 14),
            "observation.images.top": pa.array([picture] * rows, schema.field("observation.images.top").type),
            "timestamp": pa.array((frame / 10).astype(np.float32)),
            "frame_index": pa.array(frame),
            "episode_index": pa.array(np.repeat(number, LENGTH)),
            "index": pa.array(np.arange(first * LENGTH, first * LENGTH + rows)),
            "task_index": pa.array(np.zeros(rows, np.int64)),
        }
        target = path / f"data/chunk-000/file-{first // PER_FILE:03d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns, schema=schema), target, row_group_size=20 * LENGTH)
    table = {
        "episode_index": np.arange(episodes),
        "length": np.full(episodes, LENGTH),
        "dataset_from_index": np.arange(episodes) * LENGTH,
        "data/chunk_index": np.zeros(episodes, np.int64),
        "data/file_index": np.arange(episodes) // PER_FILE,
    }
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), path / "meta/episodes/chunk-000/file-000.parquet")
    write_tasks(["move"], path / "meta" / "tasks.parquet")
    info = {"codebase_version": "v3.0", "total_episodes": episodes, "total_frames": episodes * LENGTH, "fps": 10}
    info |= {"features": features, "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    write_meta(path / "meta" / "info.json", info)


def measure(path: Path, samples: int) -> dict[str, float]:
    """Open and read in this process."""
    import psutil

    from vla_ft.data.formats.registry import open_dataset
    from vla_ft.data.windows import WindowIndex, WindowSpec, build_sample

    process = psutil.Process()
    before, begin, wall = process.memory_info().rss, time.process_time(), time.perf_counter()
    reader = open_dataset(path, cache=path.parent / "cache")
    index, window = WindowIndex(reader.lengths, np.arange(len(reader.lengths))), WindowSpec(action_horizon=50)
    build_sample(reader, *index.locate(len(index) // 2), window, ("proprio", "image_top"))
    result = {"cpu_seconds": time.process_time() - begin, "wall_seconds": time.perf_counter() - wall}
    for place in np.random.default_rng(0).integers(len(index), size=samples):
        build_sample(reader, *index.locate(int(place)), window, ("proprio", "image_top"))
    result |= {"resident_mb": process.memory_info().rss / 1e6, "before_mb": before / 1e6}
    return {name: round(value, 3) for name, value in result.items()}


def main(folder: Path, result: Path) -> None:
    """Every size, in processes of their own."""
    kept = {}
    for episodes in COUNTS:
        path = folder / f"many_{episodes}"
        if not path.exists():
            write(path, episodes)
        runs = {}
        for name, samples in (("indexing", 0), *((f"opening {n}", 0) for n in (1, 2, 3)), ("resident", 3_000)):
            command = [sys.executable, __file__, "measure", str(path), str(samples)]
            runs[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        kept[f"{episodes} episodes"] = runs
        print(episodes, runs, flush=True)
    result.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
