"""Time to the first sample and resident memory of ALOHA sets of 1 to 100,000 files, each in a fresh process.

    python benchmarks/aloha_many_episodes.py FOLDER RESULT.json

Ten steps a file, a small JPEG a step. The names are hard links to 100 files with contents of their own: a reader opens
each of them. ``indexing``: the first opening, which makes the index; ``opening``: later ones with the first sample;
``fingerprint``: then the hash of all numbers, computed in the first process, kept for the later ones; ``resident``:
after 3,000 random samples.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LENGTH, DISTINCT = 10, 100
COUNTS = (1, 1_000, 100_000)


def write(path: Path, episodes: int) -> None:
    """A set of ``episodes`` names."""
    from vla_ft.data.formats.writer import EpisodeWriter

    rng = np.random.default_rng(0)
    for _ in range(min(DISTINCT, episodes)):
        with EpisodeWriter(path, cameras={"top": (32, 32)}, sim=True, compress=True, attributes={"fps": 10.0}) as file:
            for _ in range(LENGTH):
                picture = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                rows = rng.normal(size=(3, 14))
                file.add(qpos=rows[0], qvel=rows[1], action=rows[2], images={"top": picture})
    for number in range(DISTINCT, episodes):
        os.link(path / f"episode_{number % DISTINCT}.hdf5", path / f"episode_{number}.hdf5")
    for file in path.iterdir():
        os.utime(file, (time.time() - 3600,) * 2)


def measure(path: Path, samples: int) -> dict[str, float]:
    """Open and read in this process."""
    import psutil

    from vla_ft.data.formats.registry import open_dataset
    from vla_ft.data.windows import WindowIndex, WindowSpec, build_sample

    process = psutil.Process()
    before, begin, wall = process.memory_info().rss, time.process_time(), time.perf_counter()
    reader = open_dataset(path)
    index, window = WindowIndex(reader.lengths, np.arange(len(reader.lengths))), WindowSpec(action_horizon=50)
    build_sample(reader, *index.locate(len(index) // 2), window, ("proprio", "image_top"))
    result = {"cpu_seconds": time.process_time() - begin, "wall_seconds": time.perf_counter() - wall}
    for place in np.random.default_rng(0).integers(len(index), size=samples):
        build_sample(reader, *index.locate(int(place)), window, ("proprio", "image_top"))
    result |= {"resident_mb": process.memory_info().rss / 1e6, "before_mb": before / 1e6}
    begin = time.process_time()
    reader.fingerprint()
    result |= {"fingerprint_cpu_seconds": time.process_time() - begin, "load": os.getloadavg()[0]}
    return {name: round(value, 3) for name, value in result.items()}


def main(folder: Path, result: Path) -> None:
    """Every size, in processes of their own."""
    kept: dict[str, object] = {"machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0]}}
    environment = {**os.environ, "VLA_FT_CACHE": str(folder / "cache")}
    for episodes in COUNTS:
        path = folder / f"many_{episodes}"
        if not path.exists():
            write(path, episodes)
        runs = {}
        for name, samples in (("indexing", 0), *((f"opening {n}", 0) for n in (1, 2, 3)), ("resident", 3_000)):
            command = [sys.executable, __file__, "measure", str(path), str(samples)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            runs[name] = json.loads(done.stdout)
        kept[f"{episodes} episodes"] = runs
        print(episodes, runs, flush=True)
        result.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
