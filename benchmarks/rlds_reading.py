"""RLDS: our reader against tf.data and TFDS on the same shards, checksums on, in processes that alternate.

    python benchmarks/rlds_reading.py write FOLDER            # one dataset, 224 x 224 JPEG
    python benchmarks/rlds_reading.py compare FOLDER/1.0.0 --tf-python OTHER/bin/python --output JSON
    python benchmarks/rlds_reading.py scale FOLDER --output JSON

``compare`` runs each reader in a process of its own; the other interpreter needs tensorflow and tensorflow-datasets.
All go over every record: framing, checksums, the lists of every feature, numbers as arrays, images left encoded. The
two parsers are measured alone as well, on records in memory, and so is reading and checking without parsing.
``scale`` writes sets of 1 to 100,000 small episodes and measures the first sample once indexed, and resident memory
over random samples.
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
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
EPISODES, STEPS, IMAGE = 40, 60, (224, 224)
PASSES = 20


def write(folder: Path) -> None:
    """40 episodes of 60 steps: one JPEG of quality 95, 7 actions, 8 states a step."""
    import numpy as np

    from vla_ft.data.formats.rlds_writer import RldsWriter

    rng = np.random.default_rng(0)
    writer = RldsWriter(folder, describe(IMAGE), images="jpeg", shard_bytes=16 << 20)
    rows, columns = np.mgrid[: IMAGE[0], : IMAGE[1]]

    def steps():
        phases = rng.uniform(0, 6, 3)
        for step in range(STEPS):
            waves = [127 + 90 * np.sin(rows / 17 + columns / 29 + p + step / 9) for p in phases]
            image = np.clip(np.stack(waves, -1) + rng.normal(scale=6, size=(*IMAGE, 3)), 0, 255).astype(np.uint8)
            yield {"action": rng.normal(size=7), "proprio": rng.normal(size=8), "image_primary": image}

    while writer.done < EPISODES:
        writer.add(steps(), "put the spoon on the towel")
    print(writer.finish())


def describe(size: tuple[int, int]):
    """A description for generated sets."""
    from vla_ft.data.sample import DatasetDescription

    return DatasetDescription(
        name="bench", cameras={"primary": size}, fps=10, action_kind="end_effector", action_mode="delta", gripper="",
        action_names=tuple("abcdefg"), action_units=("",) * 7, proprio_names=tuple("abcdefgh"), proprio_units=("",) * 8,
    )  # fmt: skip


def read_ours(folder: Path, passes: int) -> int:
    """Frames parsed: every list of every record, numbers as arrays, every string and image located in the record."""
    from vla_ft.data.formats.tfrecord import scan

    shards = sorted(folder.glob("*.tfrecord-*")) * passes
    return sum(parse(payload) for shard in shards for _, payload in scan(shard))


def parse(record: bytes | memoryview) -> int:
    """All lists of a record, decoded or located; the number of its frames."""
    from vla_ft.data.formats.tf_example import parse_example

    features = parse_example(record)
    for feature in features.values():
        {"bytes": feature.spans, "float": feature.floats, "int64": feature.ints}[feature.kind]()
    return features["steps/is_first"].count()


def read_tf(folder: Path, passes: int) -> int:
    """The same by plain tf.data, two records in parallel, all features known beforehand."""
    import tensorflow as tf

    spec = tf_spec(tf)
    shards = sorted(map(str, folder.glob("*.tfrecord-*")))
    dataset = tf.data.TFRecordDataset(shards).repeat(passes)
    dataset = dataset.map(lambda record: tf.io.parse_single_example(record, spec), num_parallel_calls=2).prefetch(2)
    return sum(int(episode["steps/is_first"].shape[0]) for episode in dataset)


def tf_spec(tf) -> dict:
    """All features, as tf.io wants to be told them."""
    return {
        f"steps/{name}": tf.io.FixedLenSequenceFeature(shape, dtype, allow_missing=True)
        for name, shape, dtype in (
            ("observation/image", (), tf.string), ("observation/state", (8,), tf.float32), ("action", (7,), tf.float32),
            ("language_instruction", (), tf.string), ("reward", (), tf.float32), ("discount", (), tf.float32),
            ("is_first", (), tf.int64), ("is_last", (), tf.int64), ("is_terminal", (), tf.int64),
        )
    }  # fmt: skip


def read_tfds(folder: Path, passes: int) -> int:
    """The same by TFDS with its own settings, images left encoded: what the published RLDS loaders start from."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    dataset = builder.as_dataset(split="train", decoders={"steps": tfds.decode.SkipDecoding()})
    return sum(int(episode["steps"]["is_first"].shape[0]) for episode in dataset.repeat(passes))


@cache
def records(folder: Path) -> list[bytes]:
    """All records, in memory."""
    from vla_ft.data.formats.tfrecord import scan

    return [bytes(payload) for shard in sorted(folder.glob("*.tfrecord-*")) for _, payload in scan(shard)]


def parse_ours(folder: Path, passes: int) -> int:
    """Our parser alone, on records in memory: no files, no checksums."""
    return sum(parse(record) for record in records(folder) * passes)


def parse_tf(folder: Path, passes: int) -> int:
    """TensorFlow's parser alone: one graph over all records, so that neither tf.data nor Python takes a part."""
    import tensorflow as tf

    if folder not in _GRAPHS:
        shards = sorted(map(str, folder.glob("*.tfrecord-*")))
        held = [tf.constant(record) for record in tf.data.TFRecordDataset(shards).as_numpy_iterator()]
        spec = tf_spec(tf)

        @tf.function
        def graph():
            return [tf.io.parse_single_example(record, spec) for record in held]

        _GRAPHS[folder] = graph
    return sum(int(episode["steps/is_first"].shape[0]) for _ in range(passes) for episode in _GRAPHS[folder]())


def check_ours(folder: Path, passes: int) -> int:
    """Records read and their checksums verified, nothing parsed: the part that no parser can save."""
    from vla_ft.data.formats.tfrecord import scan

    return STEPS * sum(1 for shard in sorted(folder.glob("*.tfrecord-*")) * passes for _ in scan(shard))


_GRAPHS: dict = {}
READERS = {
    "ours": read_ours, "tf": read_tf, "tfds": read_tfds,
    "ours_parser": parse_ours, "tf_parser": parse_tf, "ours_checked": check_ours,
}  # fmt: skip
PAIRS = (("ours", "tf"), ("ours", "tfds"), ("ours_parser", "tf_parser"), ("ours_checked", "tf"))


def one(kind: str, folder: Path) -> None:
    """A measurement in this process: JSON on the last line of standard output."""
    READERS[kind](folder, 1)  # warm: imports, page cache, graph
    started, used = time.perf_counter(), time.process_time()
    frames = READERS[kind](folder, PASSES)
    result = {
        "kind": kind,
        "frames": frames,
        "frames_per_second": frames / (time.perf_counter() - started),
        "frames_per_cpu_second": frames / (time.process_time() - used),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


def compare(folder: Path, tf_python: str, rounds: int) -> dict:
    """Alternating processes; medians and the medians of the paired ratios."""
    runs = []
    for _ in range(rounds):
        for kind in READERS:
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
            command = [sys.executable if kind.startswith("ours") else tf_python, __file__, "one", kind, str(folder)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]})
            print(runs[-1], flush=True)
    names = ("frames_per_second", "frames_per_cpu_second", "peak_rss_mib")
    by_kind = {kind: [run for run in runs if run["kind"] == kind] for kind in READERS}
    ratios = {
        f"{mine}_to_{theirs}": {
            name: statistics.median(a[name] / b[name] for a, b in zip(by_kind[mine], by_kind[theirs], strict=True))
            for name in names
        }
        for mine, theirs in PAIRS
    }
    medians = {kind: {n: statistics.median(r[n] for r in found) for n in names} for kind, found in by_kind.items()}
    code = "import tensorflow as a, tensorflow_datasets as b; print(a.__version__, b.__version__)"
    versions = subprocess.run([tf_python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return {
        "median_ratio": ratios, "median": medians, "tensorflow": versions[0], "tensorflow_datasets": versions[1],
        "runs": runs,
    }  # fmt: skip


def scale(folder: Path) -> dict:
    """First sample and resident memory by number of episodes, each in a fresh process."""
    results = []
    for episodes in (1, 100, 10_000, 100_000):
        path = folder / f"episodes_{episodes}"
        for mode in ("index", "again"):
            command = [sys.executable, __file__, "scale-one", str(path), str(episodes), mode]
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.PIPE
            )
            results.append(json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]})
            print(results[-1], flush=True)
    return {"runs": results}


def scale_one(path: Path, episodes: int, mode: str) -> None:
    """Write the set when it is not there; then open it, read one sample, then 3,000 random ones."""
    import numpy as np
    import psutil

    if not path.exists():
        write_small(path, episodes)
    process = psutil.Process()
    from vla_ft.data.formats.rlds import RldsReader
    from vla_ft.data.windows import WindowSpec, build_sample

    rng = np.random.default_rng(0)
    imported = process.memory_info().rss
    started = time.perf_counter()
    reader = RldsReader(path)
    build_sample(reader, episodes // 2, 1, WindowSpec(action_horizon=8), ("image_primary", "proprio"))
    first, memory = time.perf_counter() - started, []
    for count in range(3000):
        episode = int(rng.integers(episodes))
        step = int(rng.integers(reader.lengths[episode]))
        build_sample(reader, episode, step, WindowSpec(action_horizon=8), ("image_primary", "proprio"))
        if count % 1000 == 999:
            memory.append(process.memory_info().rss / 2**20)
    result = {"episodes": episodes, "mode": mode, "first_sample_s": first, "rss_mib_after_import": imported / 2**20}
    print(json.dumps(result | {"rss_mib_after_1000_2000_3000_samples": memory}))


def write_small(path: Path, episodes: int) -> None:
    """Episodes of 5 steps with 16 x 16 images. The records are those of our writer; one fsync each would take hours."""
    import numpy as np

    from vla_ft.data.formats import rlds_writer

    rlds_writer.os.fsync = lambda _: None
    rng = np.random.default_rng(0)
    writer = rlds_writer.RldsWriter(path, describe((16, 16)), images="jpeg")
    images = [np.full((16, 16, 3), i, dtype=np.uint8) for i in range(5)]
    while writer.done < episodes:
        rows = rng.normal(size=(5, 15))
        writer.add(
            [{"action": r[:7], "proprio": r[7:], "image_primary": i} for r, i in zip(rows, images, strict=True)], "go"
        )
    writer.finish()


def main() -> None:
    """Run what the first word says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "compare", "scale", "one", "scale-one"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--tf-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.what == "write":
        return write(Path(options.words[0]))
    if options.what == "one":
        return one(options.words[0], Path(options.words[1]))
    if options.what == "scale-one":
        return scale_one(Path(options.words[0]), int(options.words[1]), options.words[2])
    folder = Path(options.words[0])
    result = compare(folder, options.tf_python, options.rounds) if options.what == "compare" else scale(folder)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))
    return None


if __name__ == "__main__":
    main()
