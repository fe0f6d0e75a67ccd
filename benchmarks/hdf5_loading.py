"""Samples a second from ALOHA HDF5 files: this project's reader beside the access pattern of ACT's own dataset.

    python benchmarks/hdf5_loading.py write FOLDER
    python benchmarks/hdf5_loading.py compare FOLDER --output benchmarks/results/hdf5_loading.json

``original`` is what tonyzhaozh/act's ``EpisodicDataset`` does for an item, written from its description: it opens the
episode's file, reads state, velocity, one frame of every camera and all actions to the episode's end, pads these with
zeros to the episode's length, and makes float tensors: pictures divided by 255 with the channels first, state and
actions normalised. ``ours`` is what a worker does here for a sample and a chunk: reading, padding, normalising,
collating. Pictures stay bytes, because ours are scaled on the card; therefore ``original-bytes`` is the original
without its division and transposition, and ``ours-float`` is ours with them. All take the same random (episode, step)
in the same order, one thread, in processes that alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
EPISODES, LENGTH, SIZE, JOINTS = 50, 150, (224, 224), 14
"""As many episodes as the published sets have. The pictures are raw, a frame a chunk, as published recorders write."""
SAMPLES = 3000
CHUNKS = (50, 100)
KINDS = ("original", "original-bytes", "ours", "ours-float")


def write(folder: Path) -> None:
    """The episodes: one camera, ``sim`` true, float64 numbers."""
    from vla_ft.data.formats.writer import EpisodeWriter

    rng = np.random.default_rng(0)
    for _ in range(EPISODES):
        with EpisodeWriter(folder, cameras={"top": SIZE}, sim=True) as episode:
            for row in rng.normal(size=(LENGTH, JOINTS)):
                picture = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                episode.add(qpos=row, qvel=row * 0, images={"top": picture}, action=row)


def places() -> list[tuple[int, int]]:
    """(episode, step) of every sample: shuffled, all steps equally often."""
    order = np.random.default_rng(1).permutation(EPISODES * LENGTH)[:SAMPLES]
    return [(int(place) // LENGTH, int(place) % LENGTH) for place in order]


def original(folder: Path, floats: bool) -> Any:
    """A function that reads one item as the published dataset does; ``floats``: pictures as it hands them on."""
    import h5py
    import torch

    mean, std = torch.zeros(JOINTS), torch.ones(JOINTS)

    def item(episode: int, start: int) -> tuple[torch.Tensor, ...]:
        with h5py.File(folder / f"episode_{episode}.hdf5", "r") as file:
            sim, shape = file.attrs["sim"], file["/action"].shape
            qpos, _ = file["/observations/qpos"][start], file["/observations/qvel"][start]
            pictures = [file["/observations/images/top"][start]]
            first = start if sim else max(0, start - 1)
            actions = file["/action"][first:]
        padded = np.zeros(shape, dtype=np.float32)
        padded[: len(actions)] = actions
        is_pad = np.zeros(shape[0])
        is_pad[len(actions) :] = 1
        images = torch.from_numpy(np.stack(pictures, axis=0))
        if floats:
            images = torch.einsum("k h w c -> k c h w", images) / 255.0
        state = (torch.from_numpy(qpos).float() - mean) / std
        return images, state, (torch.from_numpy(padded).float() - mean) / std, torch.from_numpy(is_pad).bool()

    return item


def ours(folder: Path, chunk: int, floats: bool) -> Any:
    """A function that makes one sample as a worker of ours does, through to ACT's tensors."""
    from vla_ft.data.formats.registry import open_dataset
    from vla_ft.data.statistics import compute_statistics
    from vla_ft.data.windows import build_sample
    from vla_ft.policies.act.config import Config
    from vla_ft.policies.act.processing import ActProcessor

    reader = open_dataset(folder)
    processor = ActProcessor(Config(chunk_size=chunk), reader.description, compute_statistics(reader, range(2)))

    def item(episode: int, start: int) -> Any:
        batch = processor.collate([build_sample(reader, episode, start, processor.window, processor.keys)])
        if floats:
            batch["image_top"] = batch["image_top"].permute(0, 3, 1, 2) / 255.0
        return batch

    item.unnormalize = processor.unnormalize  # type: ignore[attr-defined]
    return item


def one(kind: str, folder: Path, chunk: int) -> None:
    """A measurement in this process: JSON on the last line of standard output."""
    import torch

    torch.set_num_threads(1)
    name, _, variant = kind.partition("-")
    if name == "original":
        item = original(folder, floats=variant != "bytes")
    else:
        item = ours(folder, chunk, floats=variant == "float")
    wanted = places()
    for place in wanted[-200:]:  # imports, page cache
        item(*place)
    started, used = time.perf_counter(), time.process_time()
    for place in wanted:
        item(*place)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    print(json.dumps({"kind": kind, "chunk": chunk, "per_second": SAMPLES / seconds, "per_cpu_second": SAMPLES / cpu}))


def check(folder: Path) -> None:
    """Both give the same numbers and pixels."""
    import torch

    wanted, theirs = [*places()[:20], (3, LENGTH - 1)], original(folder, floats=True)
    items = [theirs(*place) for place in wanted]  # first: one process may not open a file with and without a lock
    mine = ours(folder, CHUNKS[0], floats=True)
    for (episode, start), (images, _, actions, is_pad) in zip(wanted, items, strict=True):
        batch = mine(episode, start)
        count = min(CHUNKS[0], LENGTH - start)
        assert torch.equal(batch["image_top"][0], images[0])
        assert batch["action_pad_mask"][0].sum() == count
        assert (~is_pad).sum() == LENGTH - start
        own = torch.from_numpy(mine.unnormalize(batch["action"])[0, :count])
        assert torch.allclose(own, actions[:count], atol=1e-5)


def compare(folder: Path, rounds: int) -> dict[str, Any]:
    """Alternating processes; medians of the rates and of the paired ratios."""
    check(folder)
    runs = []
    for chunk in CHUNKS:
        for _ in range(rounds):
            for kind in KINDS:
                environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, "one", kind, str(folder), str(chunk)]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]})
                print(runs[-1], flush=True)
    result: dict[str, Any] = {}
    for chunk in CHUNKS:
        by_kind = {kind: [r for r in runs if r["kind"] == kind and r["chunk"] == chunk] for kind in KINDS}
        for measure in ("per_second", "per_cpu_second"):
            rates = {kind: [run[measure] for run in found] for kind, found in by_kind.items()}
            result[f"chunk {chunk}, {measure}"] = {
                **{kind: round(statistics.median(values), 1) for kind, values in rates.items()},
                **{
                    f"{mine} / {theirs}": round(
                        statistics.median(a / b for a, b in zip(rates[mine], rates[theirs], strict=True)), 2
                    )
                    for mine, theirs in (("ours", "original"), ("ours", "original-bytes"), ("ours-float", "original"))
                },
            }
    return {"median": result, "runs": runs}


def main() -> None:
    """Run what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "compare", "one"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.what == "write":
        return write(Path(options.words[0]))
    if options.what == "one":
        return one(options.words[0], Path(options.words[1]), int(options.words[2]))
    import h5py
    import torch

    result = compare(Path(options.words[0]), options.rounds)
    machine = {
        "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(),
        "h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version, "torch": torch.__version__,
    }  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")
    print(json.dumps(result["median"], indent=1))
    return None


if __name__ == "__main__":
    main()
