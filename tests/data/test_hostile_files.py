"""Files that were made to hurt, or damaged in ways that make libraries raise what they like: always a sentence."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from any_format import write_set
from lerobot_sets import edit_json
from PIL import EpsImagePlugin, Image

from vla_ft.data.checking.dataset import CheckOptions, check_dataset
from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.lerobot import LeRobotReader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.formats.rlds import RldsReader
from vla_ft.data.formats.tf_example import parse_example, serialize_example
from vla_ft.data.formats.tfrecord import frame, scan
from vla_ft.errors import UserError

CAMERA = "observation.images.top"


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 32)).save(stream, kind)
    return stream.getvalue()


def bomb() -> bytes:
    """A JPEG whose header claims 60,000 x 60,000 pixels."""
    content = bytearray(picture("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(content)


HOSTILE = {"bomb": bomb, "GIF": lambda: picture("GIF"), "EPS": lambda: picture("EPS")}


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("Ghostscript was started on a picture of a dataset")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)


@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.parametrize("kind", HOSTILE)
def test_pictures_in_hdf5(tmp_path: Path, kind: str) -> None:
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file.attrs["sim"] = True
        for where in ("action", "observations/qpos"):
            file[where] = np.zeros((2, 2))
        frames = file.create_dataset("observations/images/top", (2,), h5py.vlen_dtype(np.uint8))
        for place, content in enumerate((picture("JPEG"), HOSTILE[kind]())):
            frames[place] = np.frombuffer(content, np.uint8)
    reader = AlohaHdf5Reader(tmp_path)
    with pytest.raises(UserError, match=r"episode_0\.hdf5: cannot read image_top at steps \[1\]: frame 1"):
        reader.read(0, np.array([1]), ["image_top"])
    (finding,) = [one for one in check_dataset(reader, CheckOptions()).findings if one.kind == "image"]
    assert (finding.level, finding.step) == ("error", 1)
    reader.close()
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        file["observations/images/top"][0] = np.frombuffer(HOSTILE[kind](), np.uint8)
    with pytest.raises(UserError, match=r"cannot read image_top at steps|episode_0\.hdf5"):
        AlohaHdf5Reader(tmp_path).read(0, np.array([0]), ["image_top"])


@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.parametrize("kind", HOSTILE)
def test_pictures_in_parquet(tmp_path: Path, kind: str) -> None:
    path = write_set(tmp_path / "set", "lerobot")
    file = sorted(path.glob("data/*/*.parquet"))[1]
    table = pq.read_table(file)
    values = table.column(CAMERA).to_pylist()
    values[2] = {"bytes": HOSTILE[kind](), "path": "x"}
    place = table.schema.get_field_index(CAMERA)
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)), file
    )
    with pytest.raises(UserError, match=r"image_top at steps \[2\] of episode 1 .*episode_000001\.parquet"):
        LeRobotReader(path, cache=tmp_path / "cache").read(1, np.array([2]), ["image_top"])


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("fps", np.nan, "attribute fps is nan"),
        ("fps", -1.0, "attribute fps is -1"),
        ("fps", np.array([1.0, 2.0]), "attribute fps is"),
        ("fps", "fast", "attribute fps is 'fast'"),
        ("sim", np.array([True, False]), "attribute sim is"),
        ("sim", "False", "attribute sim is 'False'"),
        ("language_instruction", np.array([1, 2]), "attribute language_instruction is"),
        ("language_instruction", np.bytes_(b"\xff\xfe"), "attribute language_instruction is"),
    ],
)
def test_attributes_that_say_nothing(tmp_path: Path, name: str, value: object, sentence: str) -> None:
    path = write_set(tmp_path / "set", "aloha_hdf5")
    with h5py.File(path / "episode_1.hdf5", "r+") as file:
        file.attrs[name] = value
    with pytest.raises(UserError, match=rf"episode_1\.hdf5.*{sentence}"):
        open_dataset(path)
    reader = open_dataset(path, tolerant=True)
    assert list(reader.damage) == [1]


def test_attributes_in_lists_of_one(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", "aloha_hdf5")
    for file in path.glob("*.hdf5"):
        with h5py.File(file, "r+") as open_file:
            open_file.attrs["fps"], open_file.attrs["sim"] = np.array([20.0]), np.array([False])
            open_file.attrs["language_instruction"] = np.array([b"lift"])
    reader = open_dataset(path)
    assert (reader.description.fps, reader.action_offset, reader.instruction(0)) == (20.0, -1, "lift")


@pytest.mark.parametrize("error", [TypeError, ValueError, IndexError, OverflowError, MemoryError, AttributeError])
def test_whatever_hdf5_says_of_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    path = write_set(tmp_path / "set", "aloha_hdf5")
    reader = AlohaHdf5Reader(path)

    def stumble(*_: object, **__: object) -> None:
        raise error("stumbled")

    for owner, name, call in (
        (h5py.Dataset, "__getitem__", lambda: reader.read(0, np.arange(2), ["action", "image_top"])),
        (h5py.Group, "__contains__", lambda: reader.times(0)),
        (h5py.Group, "get", lambda: AlohaHdf5Reader(path)),
        (h5py.Group, "visititems", reader.unread),
        (h5py.File, "__init__", lambda: AlohaHdf5Reader(path)),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"episode_0\.hdf5.*stumbled"):
            patch.setattr(owner, name, stumble)
            call()


@pytest.mark.parametrize("key", ["data_path", "video_path"])
@pytest.mark.parametrize("pattern", ["/etc/{episode_chunk}/{episode_index}", "a/../../{episode_chunk}/{episode_index}"])
def test_no_file_outside_a_lerobot_dataset(tmp_path: Path, key: str, pattern: str) -> None:
    path = write_set(tmp_path / "set", "lerobot")
    edit_json(path / "meta/info.json", lambda info: info["features"][CAMERA].update(dtype="video"))
    edit_json(
        path / "meta/info.json", lambda info: info.update({"video_path": "{video_key}/{episode_index}", key: pattern})
    )
    with pytest.raises(UserError, match=rf"info\.json is damaged: .*{key}.* leaves the dataset"):
        LeRobotReader(path, cache=tmp_path / "cache")


def test_a_feature_whose_name_leaves_the_dataset(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", "lerobot")

    def rename(info: dict) -> None:
        info["features"]["../../x"] = {**info["features"].pop(CAMERA), "dtype": "video"}
        info["video_path"] = "{video_key}/{episode_index}.mp4"

    edit_json(path / "meta/info.json", rename)
    with pytest.raises(UserError, match="leaves the dataset"):
        LeRobotReader(path, cache=tmp_path / "cache")


def with_number_instruction(origin: Path, folder: Path, number: int) -> Path:
    """An RLDS set whose instructions are rows of two characters, given as numbers."""
    shutil.copytree(origin, folder)
    (folder / "vla_ft.json").unlink()
    shard = next(folder.glob("*.tfrecord*"))
    content = b""
    for _, payload in scan(shard):
        read = {"bytes": lambda f: f.bytes_at(), "float": lambda f: f.floats(), "int64": lambda f: f.ints()}
        lists = {
            name: read.get(feature.kind, read["int64"])(feature)
            for name, feature in parse_example(bytes(payload)).items()
        }
        lists["steps/language_instruction"] = np.full(2 * len(lists["steps/reward"]), number, np.int64)
        content += frame(serialize_example(lists))
    shard.write_bytes(content)
    path = folder / "features.json"
    tree = json.loads(path.read_text())
    leaves = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    leaves["language_instruction"] = json.loads(json.dumps(leaves["action"]))
    leaves["language_instruction"]["tensor"].update(dtype="int64", shape={"dimensions": ["2"]})
    path.write_text(json.dumps(tree))
    return folder


@pytest.mark.parametrize("number", [1 << 40, 0x110000])
def test_characters_that_are_none(tmp_path: Path, number: int) -> None:
    origin = write_set(tmp_path / "set", "rlds")
    assert RldsReader(with_number_instruction(origin, tmp_path / "good", ord("g")), fps=5).instruction(0) == "gg"
    reader = RldsReader(with_number_instruction(origin, tmp_path / "bad", number), fps=5)
    with pytest.raises(UserError, match=rf"record 0 \(episode 0\), steps/language_instruction: .*{number}"):
        reader.instruction(0)


def test_changed_numbers_in_hdf5_leave_a_trace(tmp_path: Path) -> None:
    """Our writer keeps a sum of each block of numbers."""
    path = write_set(tmp_path / "set", "aloha_hdf5")
    numbers = AlohaHdf5Reader(path).read(1, np.arange(3), ["action"])["action"]
    content = (path / "episode_1.hdf5").read_bytes()
    with h5py.File(path / "episode_1.hdf5") as file:
        stored = file["action"][:3]
        assert all(file[where].fletcher32 for where in ("action", "observations/qpos", "observations/qvel"))
    place = content.index(stored.tobytes())
    assert np.array_equal(stored.astype(np.float32), numbers)
    (path / "episode_1.hdf5").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match=r"episode_1\.hdf5: cannot read action"):
        AlohaHdf5Reader(path).read(1, np.arange(3), ["action"])
