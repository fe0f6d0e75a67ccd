"""The RLDS reader against what TFDS itself wrote and reads, its index, its options, and every bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from vla_ft.data.formats import rlds_index
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.formats.rlds import RldsReader
from vla_ft.data.formats.rlds_mapping import camera_name
from vla_ft.data.formats.rlds_rates import known_rate
from vla_ft.data.formats.rlds_values import decode_image
from vla_ft.data.formats.tf_example import parse_example, serialize_example
from vla_ft.data.formats.tfds_features import read_features
from vla_ft.data.formats.tfrecord import frame, scan
from vla_ft.data.statistics import compute_statistics
from vla_ft.data.windows import WindowSpec, build_sample
from vla_ft.errors import UserError

FILES = Path(__file__).parent / "files" / "rlds"
ACTION = ("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action")
OPTIONS = {"action": ACTION, "fps": 5.0}
VERSION = Path("toy_arm/small/1.2.0")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A copy of the dataset that TFDS wrote (the reader puts its index beside it)."""
    shutil.copytree(FILES / "toy_arm", tmp_path / "toy_arm")
    return tmp_path / "toy_arm"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(FILES / "expected.npz") as kept:
        return dict(kept)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_leaf_is_what_tfds_reads(toy: Path, expected: dict[str, np.ndarray], split: str) -> None:
    reader = RldsReader(toy, split=split, **OPTIONS)
    assert len(reader.lengths) == {"train": 3, "val": 2}[split]
    for episode in range(len(reader.lengths)):
        raw = reader.raw(episode, list(reader.features))
        for name, read in raw.items():
            wanted = expected[f"{split}/{episode}/{name}"]
            spec = reader.features[name]
            if name == "observation/boxes":
                assert [len(r) for r in read] == expected[f"{split}/{episode}/{name}.lengths"].tolist()
                assert np.array_equal(np.concatenate(read), wanted)
            elif name == "observation/depth":
                assert len(read) == len(wanted)
            elif spec.kind == "image":
                frames = np.stack([decode_image(one) for one in read])
                # PNG is exact; two JPEG decoders may round differently.
                assert np.abs(frames.astype(int) - wanted).max() <= (0 if name == "observation/image" else 2)
            elif spec.kind == "text":
                assert np.array_equal(np.atleast_1d(read), np.char.decode(wanted))
            else:
                read = read if spec.per_step else read[None]
                assert read.dtype == wanted.dtype, name
                assert np.array_equal(read, wanted), name
        assert len(raw["is_first"]) == reader.lengths[episode]


def test_read_joins_and_decodes_what_is_asked(toy: Path, expected: dict[str, np.ndarray]) -> None:
    reader = RldsReader(toy, **OPTIONS)
    assert reader.description.cameras == {"primary": (4, 6), "wrist": (8, 8)}
    steps = np.array([1, 0, 1])
    read = reader.read(0, steps, ("action", "proprio", "image_primary", "image_wrist"))
    joined = np.concatenate([expected[f"train/0/{name}"] for name in ACTION], axis=1)
    assert np.array_equal(read["action"], joined[steps])
    assert read["action"].dtype == np.float32
    assert np.array_equal(read["proprio"], expected["train/0/observation/state"][steps].astype(np.float32))
    assert read["proprio"].dtype == np.float32
    assert np.array_equal(read["image_primary"], expected["train/0/observation/image"][steps])
    assert read["image_wrist"].shape == (3, 8, 8, 3)
    assert reader.read(0, np.array([], np.int64), ("action", "image_primary"))["image_primary"].shape == (0, 4, 6, 3)
    assert reader.instruction(0).startswith("lift the grün block")
    assert reader.instruction_at(0, 1) == reader.instruction(0)
    assert reader.description.action_names[2:] == (
        *("world_vector_2", "rotation_delta_0", "rotation_delta_1", "rotation_delta_2"),
        "gripper_closedness_action",
    )
    both = RldsReader(toy, split="train+val", **OPTIONS)
    assert both.lengths.tolist() == [*reader.lengths, *RldsReader(toy, split="val", **OPTIONS).lengths]
    assert np.array_equal(both.raw(3, ["reward"])["reward"], expected["val/0/reward"])
    assert both.name_of(3) == "toy_arm-val.tfrecord-00000-of-00002, record 0"
    assert list(both.sources()) == [f"toy_arm-{s}.tfrecord-0000{i}-of-00002" for s in ("train", "val") for i in (0, 1)]
    proprio = ("observation/exact_state", "observation/bytes_state", "is_first")
    mixed = RldsReader(toy, proprio=proprio, **OPTIONS).read(1, np.array([0]), ("proprio",))["proprio"][0]
    assert np.array_equal(mixed[6:], [*expected["train/1/observation/bytes_state"][0], 1])


def test_samples_and_statistics_come_from_it(toy: Path) -> None:
    reader = open_dataset(toy, **OPTIONS, cameras=["wrist"])
    assert isinstance(reader, RldsReader)
    sample = build_sample(reader, 1, 1, WindowSpec(observation_steps=2, action_horizon=4), ("proprio", "image_wrist"))
    assert sample["action"].shape == (4, 7)
    assert sample["observation"]["image_wrist"].shape == (2, 8, 8, 3)
    assert sample["task"]["language_instruction"] == reader.instruction(1)
    statistics = compute_statistics(reader, np.arange(3))
    assert statistics["action"].count == reader.lengths.sum()
    blind = RldsReader(toy, **{**OPTIONS, "proprio": ()})
    assert compute_statistics(blind, [0])["proprio"].mean.shape == (0,)


def test_both_forms_of_features_json_are_one() -> None:
    new = read_features(FILES / VERSION / "features.json")
    legacy = read_features(FILES / "features_legacy.json")
    assert {n: (s.kind, s.shape, s.ragged, s.encoding) for n, s in legacy.items()} == {
        n: (s.kind, s.shape, s.ragged, s.encoding) for n, s in new.items()
    }
    assert new["observation/boxes"].ragged
    assert new["observation/wrist_image"].shape == (None, None, 3)


def test_versions_and_configurations(toy: Path) -> None:
    shutil.copytree(toy / "small" / "1.2.0", toy / "small" / "1.10.0")
    info = toy / "small" / "1.10.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("1.2.0", "1.10.0"))
    assert RldsReader(toy, **OPTIONS).folder.version == "1.10.0"
    assert RldsReader(toy / "small", **OPTIONS).folder.version == "1.10.0"
    assert RldsReader(toy / "small" / "1.2.0", **OPTIONS).folder.version == "1.2.0"
    assert RldsReader(toy.parent / "toy_arm" / "small", **OPTIONS).folder.version == "1.10.0"
    shutil.copytree(toy / "small", toy / "large")
    with pytest.raises(UserError, match="holds several datasets or configurations: large, small"):
        RldsReader(toy, **OPTIONS)


def test_the_index_is_made_once_and_follows_the_shards(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RldsReader(toy, **OPTIONS)
    kept = toy / "small" / "1.2.0" / ".index-train.npz"
    assert kept.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(rlds_index, "_build", lambda *_: pytest.fail("the index was made again"))
        assert RldsReader(toy, **OPTIONS).fingerprint() == first.fingerprint()
    kept.write_bytes(kept.read_bytes()[:300])  # a cache: damaged, it is made again
    assert RldsReader(toy, **OPTIONS).lengths.tolist() == first.lengths.tolist()
    shard = toy / "small" / "1.2.0" / "toy_arm-train.tfrecord-00001-of-00002"
    records = [bytes(payload) for _, payload in scan(shard)]
    changed = {
        name: feature.floats() + 1 if name == "steps/reward" else _values(feature)
        for name, feature in parse_example(records[0]).items()
    }
    shard.write_bytes(frame(serialize_example(changed)))
    again = RldsReader(toy, **OPTIONS)
    assert np.array_equal(again.raw(2, ["reward"])["reward"], first._index.steps[2] * [0] + changed["steps/reward"])
    assert again.fingerprint() != first.fingerprint()


def _values(feature):
    return {"bytes": feature.bytes_at, "float": feature.floats, "int64": feature.ints}[feature.kind]()


def test_a_read_only_dataset_keeps_its_index_elsewhere(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real, version = os.replace, toy / "small" / "1.2.0"

    def refuse(source: Path, target: Path) -> None:
        if Path(target).parent == version:
            raise PermissionError(13, "read-only")
        real(source, target)

    monkeypatch.setattr(rlds_index.os, "replace", refuse)
    RldsReader(toy, **OPTIONS)
    assert [p.name for p in version.iterdir() if p.name.startswith(".")] == []
    assert len(list((tmp_path / "cache").rglob("*-train.npz"))) == 1
    monkeypatch.setattr(rlds_index, "_build", lambda *_: pytest.fail("the index was made again"))
    RldsReader(toy, **OPTIONS)


def test_fingerprint_survives_a_copy_and_follows_the_choice_of_leaves(toy: Path, tmp_path: Path) -> None:
    before = RldsReader(toy, **OPTIONS).fingerprint()
    shutil.copytree(toy, tmp_path / "copy")
    assert RldsReader(tmp_path / "copy", **OPTIONS, cameras=[]).fingerprint() == before
    assert RldsReader(toy, **{**OPTIONS, "action": ACTION[:1]}).fingerprint() != before
    assert RldsReader(toy, **OPTIONS, split="val").fingerprint() != before


def read_in_child(reader: RldsReader, queue: multiprocessing.Queue) -> None:
    queue.put(reader.read(1, np.array([1]), ("action", "image_wrist"))["image_wrist"].tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_workers(toy: Path, method: str) -> None:
    reader = RldsReader(toy, **OPTIONS)
    wanted = reader.read(1, np.array([1]), ("image_wrist",))["image_wrist"].tobytes()
    assert b"\xff\xd8" not in pickle.dumps(reader)  # no record travels
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(reader, queue))
    child.start()
    assert queue.get(timeout=60) == wanted
    child.join()


def test_memory_stays_flat_and_few_files_stay_open(toy: Path) -> None:
    reader = RldsReader(toy, **OPTIONS)
    process = psutil.Process()
    opened = len(process.open_files())

    def read(times: int) -> int:
        for i in range(times):
            build_sample(reader, i % 3, i % 2, WindowSpec(action_horizon=3), ("proprio", "image_wrist"))
        return process.memory_info().rss

    before = read(100)
    # Keeping the 1,000 records would take 5 MB.
    assert read(1000) - before < 2e6
    assert len(process.open_files()) <= opened + 3, "two shards and their layouts"


def info_of(version: Path, change: Callable[[dict], object]) -> None:
    path = version / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def rewrite(version: Path, change: Callable[[dict], object]) -> None:
    """Change the features of the second training record, its checksum right."""
    path = version / "toy_arm-train.tfrecord-00000-of-00002"
    records = [bytes(payload) for _, payload in scan(path)]
    features = {name: _values(feature) for name, feature in parse_example(records[1]).items()}
    change(features)
    path.write_bytes(frame(records[0]) + frame(serialize_example(features)))


SHARD = "toy_arm-train.tfrecord-00000-of-00002"
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no shard": (lambda v: (v / SHARD).unlink(), f"lacks 1 of the 2 shards of split 'train', the first being {SHARD}"),
    "no features": (lambda v: (v / "features.json").unlink(), r"Cannot read .*features\.json"),
    "features": (lambda v: (v / "features.json").write_text("[1]"), "describes no features"),
    "no steps": (
        lambda v: (v / "features.json").write_text('{"pythonClassName": "a.FeaturesDict", "featuresDict": {}}'),
        "has no 'steps'",
    ),
    "no info": (lambda v: (v / "dataset_info.json").unlink(), "No RLDS dataset at"),
    "info": (lambda v: (v / "dataset_info.json").write_text("{"), "cannot be read"),
    "list": (lambda v: (v / "dataset_info.json").write_text("[]"), "holds a list"),
    "no splits": (lambda v: info_of(v, lambda i: i.pop("splits")), "lists no splits"),
    "format": (lambda v: info_of(v, lambda i: i.update(fileFormat="array_record")), "file format 'array_record'"),
    "outside": (lambda v: info_of(v, lambda i: i.update(name="../../x")), "lists no splits"),
    "count": (
        lambda v: info_of(v, lambda i: i["splits"][0].update(shardLengths=["3", "1"])),
        "holds 2 records, but dataset_info.json says 3",
    ),
    "no leaf to count": (
        lambda v: rewrite(v, lambda f: f.pop("steps/action/gripper_closedness_action")),
        f"{SHARD}: record 1 is no episode",
    ),
    "sidecar": (lambda v: (v / "vla_ft.json").write_text("{}"), "describes no dataset"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders_are_refused_in_words(toy: Path, kind: str) -> None:
    damage, message = BAD_FOLDERS[kind]
    damage(toy / "small" / "1.2.0")
    with pytest.raises(UserError, match=message):
        RldsReader(toy, **OPTIONS)


BAD_RECORDS: dict[str, tuple[Callable[[dict], object], str, str]] = {
    "absent": (lambda f: f.pop("steps/action/world_vector"), "action", "world_vector: the record does not hold it"),
    "width": (
        lambda f: f.update({"steps/action/world_vector": np.zeros(7, np.float32)}),
        "action",
        "world_vector: it holds 7 values, expected 3 x 3",
    ),
    "kind": (
        lambda f: f.update({"steps/observation/state": [b"x"] * 3}),
        "proprio",
        "state: the list holds bytes values, expected float",
    ),
    "frames": (
        lambda f: f["steps/observation/image"].pop(),
        "image_primary",
        "image: it holds 2 values, expected 3",
    ),
    "no image": (
        lambda f: f["steps/observation/image"].__setitem__(2, b""),
        "image_primary",
        "image, step 2: 0 bytes that are no JPEG or PNG",
    ),
    "cut image": (
        lambda f: f["steps/observation/wrist_image"].__setitem__(1, f["steps/observation/wrist_image"][1][:-40]),
        "image_wrist",
        "wrist_image, step 1: .* bytes that are no JPEG or PNG",
    ),
    "size": (
        lambda f: f["steps/observation/wrist_image"].__setitem__(0, f["steps/observation/image"][0]),
        "image_wrist",
        "wrist_image, step 0: 4 x 6 pixels, expected 8 x 8",
    ),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_records_that_are_wrong_with_right_checksums(toy: Path, kind: str) -> None:
    change, key, message = BAD_RECORDS[kind]
    rewrite(toy / "small" / "1.2.0", change)
    reader = RldsReader(toy, **OPTIONS)
    with pytest.raises(UserError, match=rf"{SHARD}: record 1 \(episode 1\), steps/(action|observation)/{message}"):
        reader.read(1, np.arange(reader.lengths[1]), (key,))
    reader.read(0, np.arange(2), (key,))


def test_other_leaves_that_are_wrong(toy: Path) -> None:
    def change(features: dict) -> None:
        features["steps/is_last"][0] = 7
        features["steps/observation/exact_state"][1] = b"no zlib"
        features["steps/observation/bytes_state"][1] = b"\0" * 3
        features["steps/observation/natural_language_instruction"][0] = b"\xff\xfe"
        features["steps/observation/boxes/ragged_row_lengths_0"][0] += 1

    rewrite(toy / "small" / "1.2.0", change)
    reader = RldsReader(toy, **OPTIONS)
    for name, message in (
        ("is_last", "0 to 7, which is no bool"),
        ("observation/exact_state", "zlib data"),
        ("observation/bytes_state", "3 bytes of int16"),
        ("observation/boxes", "lists of .* rows, expected"),
    ):
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            reader.raw(1, [name])
    with pytest.raises(UserError, match="no UTF-8"):
        reader.instruction(1)


def test_bad_options(toy: Path) -> None:
    with pytest.raises(UserError, match=r"has no single action \(it has: action/gripper.*data\.action=\[action/"):
        RldsReader(toy, fps=5)
    with pytest.raises(UserError, match=r"The rate of .* is unknown.*'toy_arm' is not among.*data\.fps=10"):
        RldsReader(toy, action=ACTION)
    with pytest.raises(UserError, match="is 0"):
        RldsReader(toy, action=ACTION, fps=0)
    with pytest.raises(UserError, match="Did you mean 'val'"):
        RldsReader(toy, split="vaal", **OPTIONS)
    with pytest.raises(UserError, match="Did you mean 'wrist'"):
        RldsReader(toy, cameras=["wrst"], **OPTIONS)
    with pytest.raises(UserError, match="Did you mean 'action/world_vector'"):
        RldsReader(toy, action=["action/world_vectro"], fps=5)
    with pytest.raises(UserError, match=r"'observation/boxes' is Tensor int32 .* cannot be a part of proprio"):
        RldsReader(toy, proprio=["observation/boxes"], **OPTIONS)
    with pytest.raises(UserError, match="cannot be a part of action"):
        RldsReader(toy, action=["episode_metadata/id"], fps=5)
    reader = RldsReader(toy, **OPTIONS)
    with pytest.raises(UserError, match="Did you mean 'image_wrist'"):
        reader.read(0, np.array([0]), ["image_wist"])
    with pytest.raises(UserError, match="Did you mean 'reward'"):
        reader.raw(0, ["rewards"])
    with pytest.raises(ValueError, match="episode of 2 steps"):
        reader.read(0, np.array([2]), ["action"])


def test_names_of_cameras_and_rates_of_published_sets() -> None:
    names = {"image": "primary", "image_0": "0", "wrist_image": "wrist", "image_top": "top", "rgb_static": "rgb_static"}
    assert {name: camera_name(f"observation/{name}") for name in names} == names
    assert known_rate("fractal20220817_data") == 3
    assert known_rate("bridge_orig") == known_rate("bridge_dataset") == 5
    assert known_rate("austin_buds_dataset_converted_externally_to_rlds") == 20
    assert known_rate("iamlab_cmu_pickup_insert_converted_externally_to_rlds") == 20
    assert known_rate("my_own") is None
