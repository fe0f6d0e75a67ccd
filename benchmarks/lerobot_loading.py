"""Samples a CPU-second from LeRobot datasets: this project's reader beside LeRobot's own on the same files.

    python benchmarks/lerobot_loading.py write FOLDER                  # this project's environment
    python benchmarks/lerobot_loading.py ours FOLDER RESULT.json
    python benchmarks/lerobot_loading.py lerobot FOLDER RESULT.json    # an environment with LeRobot

Both sides take the same random samples in the same order in one thread: the frames of now from every camera, the state,
and 50 actions. The clock is the process' CPU time, because the machine has other users. The image dataset is written by
LeRobot's rule (Snappy, an episode a row group and a page), not by our writer's, which makes it easier to read.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

EPISODES, LENGTH, CHUNK = 8, 300, 50
SIZE = (224, 224)
SAMPLES = {"image": 600, "noisy_image": 600, "video": 300}
LEROBOT_SAMPLES = {"image": 20, "noisy_image": 20, "video": 60}
CAMERAS = {"image": ("top",), "noisy_image": ("top",), "video": ("top", "wrist")}
"""``image``: smooth pictures as a simulator renders them; ``noisy_image``: with noise, which PNG cannot pack."""


def write(folder: Path) -> None:
    """The two datasets, version 3.0: images in parquet with one camera, AV1 videos with two."""
    import pyarrow.parquet as pq

    from vla_ft.data.formats.lerobot_writer import LeRobotWriter
    from vla_ft.data.sample import DatasetDescription

    joints = tuple(f"joint_{i}" for i in range(14))
    unknown = ("unknown",) * 14
    for kind, cameras in CAMERAS.items():
        description = DatasetDescription(
            name=kind,
            cameras=dict.fromkeys(cameras, SIZE),
            action_names=joints,
            action_units=unknown,
            proprio_names=joints,
            proprio_units=unknown,
            action_kind="joint",
            action_mode="absolute",
            gripper="unknown",
            fps=50.0,
        )
        writer = LeRobotWriter(folder / kind, description, images="video" if kind == "video" else "image")
        for episode in range(EPISODES):
            writer.add(_steps(episode, cameras, kind), "move")
        writer.finish()
    for path in folder.glob("*image/data/*/*.parquet"):
        table = pq.read_table(path)
        with pq.ParquetWriter(path, table.schema, compression="snappy") as rewritten:
            for first in range(0, len(table), LENGTH):
                rewritten.write_table(table.slice(first, LENGTH))


def measure_ours(folder: Path, result: Path) -> None:
    """This project's reader."""
    import av
    import PIL
    import pyarrow

    from vla_ft.data.formats.registry import open_dataset
    from vla_ft.data.windows import WindowIndex, WindowSpec, build_sample

    versions = {"pyarrow": pyarrow.__version__, "pillow": PIL.__version__, "av": av.__version__}
    for kind, cameras in CAMERAS.items():
        begin = time.process_time()
        reader = open_dataset(folder / kind, cache=folder / "cache")
        opened = time.process_time() - begin
        index = WindowIndex(reader.lengths, np.arange(len(reader.lengths)))
        keys = ("proprio", *(f"image_{camera}" for camera in cameras))
        window = WindowSpec(action_horizon=CHUNK)
        order = _order(len(index))[: SAMPLES[kind]]
        build_sample(reader, 0, 0, window, keys)
        begin, wall = time.process_time(), time.perf_counter()
        for place in order:
            build_sample(reader, *index.locate(int(place)), window, keys)
        seconds, wall = time.process_time() - begin, time.perf_counter() - wall
        _keep(result, f"{kind} ours", len(order), seconds, wall, opened, versions | {"decoder": _decoder(reader, kind)})


def measure_lerobot(folder: Path, result: Path) -> None:
    """LeRobot's own reader, with each of its video decoders that runs."""
    import os

    import av
    import lerobot
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    versions = {"lerobot": lerobot.__version__, "torch": torch.__version__, "av": av.__version__}
    for kind in CAMERAS:
        for backend in ("pyav", "torchcodec") if kind == "video" else ("pyav",):
            begin = time.process_time()
            deltas = {"action": [step / 50 for step in range(CHUNK)]}
            dataset = LeRobotDataset(
                f"local/{kind}", root=folder / kind, delta_timestamps=deltas, video_backend=backend
            )
            opened = time.process_time() - begin
            order = _order(len(dataset))[: LEROBOT_SAMPLES[kind]]
            _ = dataset[0]
            begin, wall = time.process_time(), time.perf_counter()
            for place in order:
                _ = dataset[int(place)]
            seconds, wall = time.process_time() - begin, time.perf_counter() - wall
            name = f"{kind} lerobot" + (f" {backend}" if kind == "video" else "")
            facts = versions | {"cores": str(os.cpu_count())}
            if backend == "torchcodec":
                import torchcodec

                facts["torchcodec"] = torchcodec.__version__
            _keep(result, name, len(order), seconds, wall, opened, facts)


def _decoder(reader: Any, kind: str) -> str:
    if kind != "video":
        return "Pillow"
    video = next(iter(reader._videos._open.values()))
    return f"PyAV, {video.stream.codec_context.name}"


def _order(windows: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(windows)


def _steps(episode: int, cameras: tuple[str, ...], kind: str) -> Any:
    """A smooth scene with a moving disc, and a little noise unless ``kind`` is ``image``."""
    rng = np.random.default_rng(episode)
    down, across = np.mgrid[: SIZE[0], : SIZE[1]]
    scene = np.stack([across, down, (across + down) / 2], axis=-1) * rng.uniform(0.3, 0.8) + 30
    for step in range(LENGTH):
        x, y = 112 + 80 * np.cos(step / 40 + episode), 112 + 80 * np.sin(step / 30)
        inside = (across - x) ** 2 + (down - y) ** 2 < 400
        noise = 0 if kind == "image" else rng.integers(-2, 3, (*SIZE, 1))
        picture = np.where(inside[..., None], [220, 40, 40], scene) + noise
        image = np.clip(picture, 0, 255).astype(np.uint8)
        numbers = rng.normal(size=14).astype(np.float32)
        yield {"action": numbers, "proprio": numbers, **{f"image_{camera}": image for camera in cameras}}


def _keep(result: Path, name: str, samples: int, seconds: float, wall: float, opened: float, versions: Any) -> None:
    kept = json.loads(result.read_text()) if result.exists() else {}
    kept.setdefault(name, []).append(
        {
            "samples": samples,
            "cpu_seconds": round(seconds, 4),
            "wall_seconds": round(wall, 4),
            "samples_per_cpu_second": round(samples / seconds, 1),
            "opening_cpu_seconds": round(opened, 3),
            **versions,
        }
    )
    result.write_text(json.dumps(kept, indent=1) + "\n")
    print(name, kept[name][-1])


if __name__ == "__main__":
    command, place = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        write(place)
    else:
        {"ours": measure_ours, "lerobot": measure_lerobot}[command](place, Path(sys.argv[3]))
