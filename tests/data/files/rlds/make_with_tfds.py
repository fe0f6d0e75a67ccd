"""Makes the files beside it with tensorflow-datasets, so that our reader is held to what TFDS writes and reads.

Run it in an environment of its own (``pip install tensorflow-cpu tensorflow-datasets``; made with 2.21.0 and 4.9.10):

    python tests/data/files/rlds/make_with_tfds.py

``toy_arm/small/1.2.0`` is the dataset, ``expected.npz`` what TFDS reads from it (``<split>/<episode>/<leaf>``), and
``features_legacy.json`` the same features in the form that TFDS wrote before 2021.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

HERE = Path(__file__).parent
F = tfds.features
STEP = {
    "observation": {
        "image": F.Image(shape=(4, 6, 3), dtype=np.uint8, encoding_format="png"),
        "wrist_image": F.Image(shape=(None, None, 3), dtype=np.uint8, encoding_format="jpeg"),
        "depth": F.Image(shape=(4, 6, 1), dtype=np.uint16, encoding_format="png"),
        "state": F.Tensor(shape=(8,), dtype=np.float64),
        "exact_state": F.Tensor(shape=(2, 3), dtype=np.float64, encoding=F.Encoding.ZLIB),
        "bytes_state": F.Tensor(shape=(2,), dtype=np.int16, encoding=F.Encoding.BYTES),
        "natural_language_instruction": F.Text(),
        "boxes": F.Sequence(F.Tensor(shape=(2,), dtype=np.int32)),
    },
    "action": {
        "world_vector": F.Tensor(shape=(3,), dtype=np.float32),
        "rotation_delta": F.Tensor(shape=(3,), dtype=np.float32),
        "gripper_closedness_action": F.Tensor(shape=(1,), dtype=np.float32),
        "terminate_episode": F.Tensor(shape=(3,), dtype=np.int32),
        "open_gripper": np.bool_,
    },
    "is_first": np.bool_,
    "is_last": F.Scalar(dtype=np.bool_),
    "reward": F.Scalar(dtype=np.float32),
    "label": F.ClassLabel(num_classes=5),
}
FEATURES = F.FeaturesDict(
    {"steps": F.Dataset(STEP), "episode_metadata": {"file_path": F.Text(), "id": F.Scalar(dtype=np.int64)}}
)


def make_step(rng: np.random.Generator, episode: int, step: int, length: int) -> dict:
    """One step; the JPEG is of 8 x 8 pixels, so that its colours survive."""
    return {
        "observation": {
            "image": rng.integers(0, 256, (4, 6, 3), dtype=np.uint8),
            "wrist_image": np.full((8, 8, 3), rng.integers(0, 256, 3), dtype=np.uint8),
            "depth": rng.integers(0, 60000, (4, 6, 1), dtype=np.uint16),
            "state": rng.normal(size=8),
            "exact_state": rng.normal(size=(2, 3)),
            "bytes_state": rng.integers(-999, 999, 2).astype(np.int16),
            "natural_language_instruction": f"lift the grün block {episode}",
            "boxes": rng.integers(-5, 5, (int(rng.integers(0, 3)), 2)).astype(np.int32),
        },
        "action": {
            "world_vector": rng.normal(size=3).astype(np.float32),
            "rotation_delta": rng.normal(size=3).astype(np.float32),
            "gripper_closedness_action": rng.normal(size=1).astype(np.float32),
            "terminate_episode": np.array([step, -1, 300], np.int32),
            "open_gripper": bool(step % 2),
        },
        "is_first": step == 0,
        "is_last": step == length - 1,
        "reward": float(step == length - 1),
        "label": step % 5,
    }


class ToyArm(tfds.core.GeneratorBasedBuilder):
    """Three training episodes and two for validation, in two shards each."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="small"),)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=FEATURES)

    def _split_generators(self, _: object) -> dict:
        return {"train": self._generate_examples(0, 3), "val": self._generate_examples(10, 2)}

    def _generate_examples(self, first: int, count: int):
        for episode in range(first, first + count):
            rng = np.random.default_rng(episode)
            length = 2 + episode % 3
            steps = [make_step(rng, episode, step, length) for step in range(length)]
            yield f"{episode}", {"steps": steps, "episode_metadata": {"file_path": f"/{episode}", "id": episode}}


def flatten(prefix: str, node: object, into: dict[str, list]) -> None:
    """Leaves of nested dictionaries by their joined names."""
    if isinstance(node, dict):
        for name, child in node.items():
            flatten(f"{prefix}/{name}" if prefix else name, child, into)
    else:
        into.setdefault(prefix, []).append(node)


def main() -> None:
    """Write the three."""
    shutil.rmtree(HERE / "toy_arm", ignore_errors=True)
    workplace = tempfile.mkdtemp()
    builder = ToyArm(data_dir=workplace, config="small")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    expected = {}
    for split in ("train", "val"):
        dataset = builder.as_dataset(split=split, read_config=tfds.ReadConfig(interleave_cycle_length=1))
        for number, episode in enumerate(dataset):
            leaves: dict[str, list] = {}
            for step in episode["steps"]:
                flatten("", step, leaves)
            flatten("", {"episode_metadata": episode["episode_metadata"]}, leaves)
            for name, values in leaves.items():
                if name == "observation/boxes":
                    values = [np.array([len(v) for v in values]), np.concatenate([v.numpy() for v in values])]
                    expected[f"{split}/{number}/{name}.lengths"], expected[f"{split}/{number}/{name}"] = values
                else:
                    expected[f"{split}/{number}/{name}"] = np.stack([v.numpy() for v in values])
    shutil.move(f"{workplace}/toy_arm", HERE / "toy_arm")
    np.savez_compressed(HERE / "expected.npz", **expected)
    (HERE / "features_legacy.json").write_text(json.dumps(legacy(FEATURES)))


def legacy(feature: tfds.features.FeatureConnector) -> dict:
    """The form with ``type`` and ``content``, nested in itself."""
    node = {"type": f"{type(feature).__module__}.{type(feature).__name__}"}
    if isinstance(feature, F.FeaturesDict):
        node["content"] = {name: legacy(child) for name, child in feature.items()}
    elif isinstance(feature, F.Sequence):
        node["content"] = {"feature": legacy(feature.feature), "length": None}
    else:
        content = feature.to_json()["content"]
        if "shape" in content:
            content["shape"] = [None if int(n) < 0 else int(n) for n in content["shape"].get("dimensions", ())]
        node["content"] = content
    return node


if __name__ == "__main__":
    main()
