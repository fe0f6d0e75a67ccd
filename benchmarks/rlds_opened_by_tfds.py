"""Whether tensorflow-datasets opens what ``RldsWriter`` writes, and reads the same values from it.

    python benchmarks/rlds_opened_by_tfds.py write FOLDER             # in this project's environment
    OTHER/bin/python benchmarks/rlds_opened_by_tfds.py check FOLDER   # with tensorflow-cpu, tensorflow-datasets

``write`` keeps what it wrote in ``FOLDER/expected.npz``; ``check`` prints JSON and fails at the first difference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
LENGTHS = (4, 7, 1, 5)


def write(folder: Path) -> None:
    """Four episodes, two cameras, in several shards; once with PNG and once with JPEG."""
    sys.path.insert(0, str(ROOT))
    from vla_ft.data.formats.rlds_writer import RldsWriter
    from vla_ft.data.sample import DatasetDescription

    description = DatasetDescription(
        name="opened by tfds", cameras={"primary": (24, 32), "wrist": (16, 16)}, fps=10, gripper="",
        action_kind="joint", action_mode="absolute", action_names=tuple("abcdefg"), action_units=("rad",) * 7,
        proprio_names=tuple("abc"), proprio_units=("rad",) * 3,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    kept: dict[str, np.ndarray] = {}
    writers = [RldsWriter(folder / kind, description, images=kind, shard_bytes=9000) for kind in ("png", "jpeg")]
    for episode, length in enumerate(LENGTHS):
        steps = [
            {
                "action": rng.normal(size=7).astype(np.float32),
                "proprio": rng.normal(size=3).astype(np.float32),
                "image_primary": np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (24, 32, 3)),
                "image_wrist": np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (16, 16, 3)),
            }
            for _ in range(length)
        ]
        kept |= {f"{episode}/{key}": np.stack([step[key] for step in steps]) for key in steps[0]}
        for writer in writers:
            writer.add(steps, f"öffne {episode}")
    for writer in writers:
        print(writer.finish())
    np.savez_compressed(folder / "expected.npz", **kept)


def check(folder: Path) -> None:
    """Every value, by ``tfds.builder_from_directory``."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    result: dict = {"tensorflow": tf.__version__, "tensorflow_datasets": tfds.__version__}
    names = {"action": "action", "proprio": "state", "image_primary": "image", "image_wrist": "image_wrist"}
    with np.load(folder / "expected.npz") as expected:
        for kind in ("png", "jpeg"):
            builder = tfds.builder_from_directory(str(folder / kind / "1.0.0"))
            dataset = builder.as_dataset(split="train", read_config=tfds.ReadConfig(interleave_cycle_length=1))
            worst, steps_read = 0, 0
            for episode, record in enumerate(tfds.as_numpy(dataset)):
                steps = list(record["steps"])
                assert [s["is_first"] for s in steps] == [i == 0 for i in range(LENGTHS[episode])]
                assert [s["is_last"] for s in steps] == [i == LENGTHS[episode] - 1 for i in range(LENGTHS[episode])]
                assert {s["language_instruction"].decode() for s in steps} == {f"öffne {episode}"}
                for key, name in names.items():
                    read = np.stack([(s if key == "action" else s["observation"])[name] for s in steps])
                    difference = np.abs(read.astype(np.float64) - expected[f"{episode}/{key}"]).max()
                    worst = max(worst, float(difference)) if key.startswith("image") else worst
                    assert key.startswith("image") or difference == 0, (episode, key)
                steps_read += len(steps)
            split = builder.info.splits["train"]
            assert (split.num_examples, steps_read) == (len(LENGTHS), sum(LENGTHS))
            assert worst <= (0 if kind == "png" else 3), worst
            shards = {"episodes": split.num_examples, "steps": steps_read, "shards": split.num_shards}
            result[kind] = shards | {"numbers": "equal", "largest_difference_of_a_pixel": worst}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
