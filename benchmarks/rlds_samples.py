"""RLDS: training samples a CPU-second, ours beside the pipeline of the published loaders on the same shards.

    python benchmarks/rlds_reading.py write FOLDER
    python benchmarks/rlds_samples.py compare FOLDER/1.0.0 --tf-python OTHER/bin/python --output JSON

A sample is the image and state of a step, its instruction, and 16 actions from it. ``ours`` takes random (episode,
step), each once a pass, by random access. ``tf`` streams as octo, OpenVLA and open-pi-zero do: records are parsed (two
at a time), cut into windows, flattened to steps and shuffled in a buffer of ``--buffer`` encoded samples (the published
ones hold 100,000 and more). Both verify checksums: ``tf`` once a record and pass, ours as often (``RecordStore``).
``encoded`` leaves images as they are stored, ``decoded`` makes pixels of them. Both give batches of 32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CHUNK, BATCH = 16, 32
PASSES = {"encoded": 8, "decoded": 2}
MEASURES = ("samples_per_second", "samples_per_cpu_second", "peak_rss_mib")
Batch = tuple[np.ndarray, np.ndarray, Any]
"""State [B, 8], actions [B, 16, 7], images: encoded or uint8 [B, 224, 224, 3]."""


def ours(folder: Path, images: str, passes: int, buffer: int) -> Iterator[Batch]:
    """By random access, in one thread; the index is there already."""
    from vla_ft.data.formats.rlds import RldsReader
    from vla_ft.data.windows import WindowIndex, WindowSpec, build_sample

    reader, window = RldsReader(folder), WindowSpec(action_horizon=CHUNK)
    index = WindowIndex(reader.lengths, np.arange(len(reader.lengths)))
    keys = ("proprio",) if images == "encoded" else ("proprio", "image_primary")
    for number in range(passes):
        order = np.random.default_rng(number).permutation(len(index))
        for first in range(0, len(order), BATCH):
            places = [index.locate(int(place)) for place in order[first : first + BATCH]]
            pictures, states, actions = [], [], []
            for episode, step in places:
                sample = build_sample(reader, episode, step, window, keys)
                states.append(sample["observation"]["proprio"][0])
                actions.append(sample["action"])
                if images == "encoded":
                    pictures.append(
                        reader.raw(episode, ["observation/image"], np.array([step]))["observation/image"][0]
                    )
                else:
                    pictures.append(sample["observation"]["image_primary"][0])
            yield np.stack(states), np.stack(actions), pictures if images == "encoded" else np.stack(pictures)


def tf(folder: Path, images: str, passes: int, buffer: int) -> Iterator[Batch]:
    """The published loaders' order of work in plain tf.data: what remains of them without their own overhead."""
    import tensorflow as tf

    spec = {
        f"steps/{name}": tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True)
        for name, shape, dtype in (
            ("observation/image", (), tf.string), ("observation/state", (8,), tf.float32), ("action", (7,), tf.float32),
            ("language_instruction", (), tf.string),
        )
    }  # fmt: skip

    def windows(record: Any) -> dict[str, Any]:
        steps = tf.io.parse_single_example(record, spec)
        length = tf.shape(steps["steps/action"])[0]
        rows = tf.minimum(tf.range(length)[:, None] + tf.range(CHUNK)[None], length - 1)
        return {**steps, "steps/action": tf.gather(steps["steps/action"], rows)}

    def decode(step: dict[str, Any]) -> dict[str, Any]:
        return {**step, "steps/observation/image": tf.io.decode_jpeg(step["steps/observation/image"], channels=3)}

    dataset = tf.data.TFRecordDataset(sorted(map(str, folder.glob("*.tfrecord-*")))).repeat(passes)
    dataset = dataset.map(windows, num_parallel_calls=2).flat_map(tf.data.Dataset.from_tensor_slices).shuffle(buffer)
    if images == "decoded":
        dataset = dataset.map(decode, num_parallel_calls=2)
    for batch in dataset.batch(BATCH).prefetch(1):
        yield tuple(batch[f"steps/{key}"].numpy() for key in ("observation/state", "action", "observation/image"))


def one(kind: str, images: str, folder: Path, buffer: int) -> None:
    """A measurement in this process: JSON on the last line of standard output."""
    read = {"ours": ours, "tf": tf}[kind]
    whole = [0.0, 0.0, 0.0]
    for state, action, pictures in read(folder, images, 1, buffer):  # imports, page cache, graph; and all is there
        size = sum(map(len, pictures)) if images == "encoded" else pictures.nbytes
        whole = [a + b for a, b in zip(whole, (state.sum(dtype=float), action.sum(dtype=float), size), strict=True)]
    started, used, samples = time.perf_counter(), time.process_time(), 0
    for state, _, _ in read(folder, images, PASSES[images], buffer):
        samples += len(state)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    rates = (samples / seconds, samples / cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    found = {"kind": kind, "images": images, "samples": samples, "sums": whole}
    print(json.dumps({**found, **dict(zip(MEASURES, rates, strict=True))}))


def compare(folder: Path, tf_python: str, rounds: int, buffer: int) -> dict[str, Any]:
    """Alternating processes; medians, and medians of the paired ratios."""
    runs: list[dict[str, Any]] = []
    for images in PASSES:
        for _ in range(rounds):
            for kind, python in (("ours", sys.executable), ("tf", tf_python)):
                environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
                command = [python, __file__, "one", kind, images, str(folder), "--buffer", str(buffer)]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]})
                print(runs[-1], flush=True)
    result: dict[str, Any] = {}
    for images in PASSES:
        mine, theirs = ([r for r in runs if (r["kind"], r["images"]) == (k, images)] for k in ("ours", "tf"))
        np.testing.assert_allclose(mine[0]["sums"], theirs[0]["sums"], rtol=1e-5, atol=1e-2)
        result[images] = {
            measure: {
                "ours": statistics.median(run[measure] for run in mine),
                "tf": statistics.median(run[measure] for run in theirs),
                "ratio": statistics.median(a[measure] / b[measure] for a, b in zip(mine, theirs, strict=True)),
            }
            for measure in MEASURES
        }
    version = subprocess.run(
        [tf_python, "-c", "import tensorflow; print(tensorflow.__version__)"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    return {"buffer": buffer, "tensorflow": version, "median": result, "runs": runs}


def main() -> None:
    """Run what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["compare", "one"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--tf-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--buffer", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.what == "one":
        return one(options.words[0], options.words[1], Path(options.words[2]), options.buffer)
    result = compare(Path(options.words[0]), options.tf_python, options.rounds, options.buffer)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")
    print(json.dumps(result["median"], indent=1))
    return None


if __name__ == "__main__":
    main()
