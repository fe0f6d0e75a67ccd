"""The ALOHA reader: exact rows, encoded frames, variable lengths, bounded handles and memory, and every bad input."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from episode_sets import IMAGE, SetOnDisk
from PIL import Image

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.formats.writer import EpisodeWriter
from vla_ft.errors import UserError

KEYS = ("action", "proprio", "image_top", "image_wrist")


def test_round_trip_is_exact(aloha_set: SetOnDisk) -> None:
    reader = AlohaHdf5Reader(aloha_set.folder)
    assert reader.lengths.tolist() == [5, 9, 7]
    for episode, written in enumerate(aloha_set.episodes):
        read = reader.read(episode, np.arange(reader.lengths[episode]), KEYS)
        assert {k: v.dtype.name for k, v in read.items()} == {
            "action": "float32",
            "proprio": "float32",
            "image_top": "uint8",
            "image_wrist": "uint8",
        }
        assert np.array_equal(read["action"], written["action"].astype(np.float32))
        assert np.array_equal(read["proprio"], written["qpos"].astype(np.float32))
        assert np.array_equal(read["image_top"], written["image_top"])
        assert np.array_equal(read["image_wrist"], written["image_wrist"])


@pytest.mark.parametrize("steps", [[3], [0, 1, 2], [7, 2, 2, 5], [8, 8, 8], [0, 4, 8], [5, 4, 3], []])
@pytest.mark.parametrize("compress", [False, True])
def test_any_rows_in_any_order(new_set: Callable[[], SetOnDisk], steps: list[int], compress: bool) -> None:
    made = new_set()
    made.add(9, compress=compress)
    reader = AlohaHdf5Reader(made.folder)
    whole = reader.read(0, np.arange(9), KEYS)
    some = reader.read(0, np.array(steps, dtype=np.int64), KEYS)
    for key in KEYS:
        assert np.array_equal(some[key], whole[key][np.array(steps, dtype=np.int64)])


def test_jpeg_frames(new_set: Callable[[], SetOnDisk]) -> None:
    made = new_set()
    path = made.add(4, compress=True)
    with h5py.File(path) as file:
        assert file.attrs["compress"]
        assert file["observations/images/top"][0][:2].tolist() == [0xFF, 0xD8]
    reader = AlohaHdf5Reader(made.folder)
    assert reader.description.cameras == {"top": IMAGE, "wrist": IMAGE}
    read = reader.read(0, np.arange(4), ["image_top"])["image_top"].astype(int)
    difference = np.abs(read - made.episodes[0]["image_top"])
    assert difference.mean() < 2
    swapped = AlohaHdf5Reader(made.folder, jpeg_channels="bgr").read(0, np.arange(4), ["image_top"])["image_top"]
    assert np.array_equal(swapped[..., ::-1], read)


def jpeg(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["padded", "bytes", "void"])
def test_the_ways_in_which_others_store_jpegs(aloha_set: SetOnDisk, form: str) -> None:
    path = aloha_set.folder / "episode_1.hdf5"
    frames = [jpeg(image) for image in aloha_set.episodes[1]["image_top"]]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(f))) for f in frames])
    longest = max(map(len, frames)) + 10
    with h5py.File(path, "r+") as file:
        file.attrs["compress"] = True
        del file["observations/images/top"]
        if form == "padded":
            rows = np.stack([np.frombuffer(f.ljust(longest, b"\0"), np.uint8) for f in frames])
        else:
            rows = np.array(frames, dtype=f"{'S' if form == 'bytes' else 'V'}{longest}")
        file["observations/images/top"] = rows
    reader = AlohaHdf5Reader(path, cameras=["top"])
    assert np.array_equal(reader.read(0, np.arange(9), ["image_top"])["image_top"], expected)


def test_episodes_in_the_order_of_their_numbers(new_set: Callable[[], SetOnDisk]) -> None:
    made = new_set()
    for number, length in ((2, 3), (10, 4), (1, 5)):
        made.add(length).rename(made.folder / f"{number}")
        (made.folder / f"{number}").rename(made.folder / f"{number}.kept")
    for number in (2, 10, 1):
        (made.folder / f"{number}.kept").rename(made.folder / f"episode_{number}.hdf5")
    reader = AlohaHdf5Reader(made.folder)
    assert reader.lengths.tolist() == [5, 3, 4]
    assert [reader.name_of(e) for e in range(3)] == ["episode_1.hdf5", "episode_2.hdf5", "episode_10.hdf5"]
    assert AlohaHdf5Reader(made.folder / "episode_10.hdf5").lengths.tolist() == [4]


def test_description(aloha_set: SetOnDisk, new_set: Callable[[], SetOnDisk]) -> None:
    description = AlohaHdf5Reader(aloha_set.folder).description
    assert description.action_names[:2] == ("left_waist", "left_shoulder")
    assert description.action_names[6:8] == ("left_gripper", "right_waist")
    assert description.proprio_names[13] == "right_gripper"
    assert description.action_units[0] == "rad"
    assert description.action_units[6] == "fraction"
    assert description.fps == 50
    assert AlohaHdf5Reader(aloha_set.folder, fps=25).description.fps == 25

    seven = new_set()
    seven.add(3, width=7, attributes={"fps": 30, "language_instruction": "pour"})
    reader = AlohaHdf5Reader(seven.folder, cameras=["wrist"], instruction="unused")
    assert reader.description.action_names == tuple(f"action_{i}" for i in range(7))
    assert reader.description.fps == 30
    assert list(reader.description.cameras) == ["wrist"]
    assert reader.instruction(0) == "pour"


def test_action_offset_follows_sim(new_set: Callable[[], SetOnDisk]) -> None:
    real = new_set()
    path = real.add(3, sim=False)
    assert AlohaHdf5Reader(real.folder).action_offset == -1
    with h5py.File(path, "r+") as file:
        del file.attrs["sim"]
    with pytest.raises(UserError, match="no attribute sim"):
        AlohaHdf5Reader(real.folder)
    assert AlohaHdf5Reader(real.folder, sim=True).action_offset == 0


def test_contradicting_sim_is_refused(aloha_set: SetOnDisk) -> None:
    with pytest.raises(UserError, match=r"data\.sim is False"):
        AlohaHdf5Reader(aloha_set.folder, sim=False)


def test_fingerprint_follows_numbers_alone(aloha_set: SetOnDisk, tmp_path: Path) -> None:
    before = AlohaHdf5Reader(aloha_set.folder).fingerprint()
    copied = tmp_path / "copied"
    shutil.copytree(aloha_set.folder, copied)
    assert AlohaHdf5Reader(copied, cameras=[]).fingerprint() == before
    for where in ("action", "observations/qpos"):
        with h5py.File(copied / "episode_2.hdf5", "r+") as file:
            file[where][3, 5] += 0.5
        changed = AlohaHdf5Reader(copied).fingerprint()
        assert changed != before
        before = changed


def test_few_files_stay_open_and_pickling_carries_none(new_set: Callable[[], SetOnDisk]) -> None:
    made = new_set()
    for _ in range(6):
        made.add(2, cameras=("top",))
    process = psutil.Process()
    opened = len(process.open_files())
    reader = AlohaHdf5Reader(made.folder, open_files=2)
    assert len(process.open_files()) == opened
    for episode in (0, 1, 2, 3, 4, 5, 0, 0):
        reader.read(episode, np.array([1]), ["action"])
    assert len(process.open_files()) == opened + 2
    copy = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(
        copy.read(3, np.array([0]), ["action"])["action"], made.episodes[3]["action"][:1].astype("f4")
    )
    reader.close()
    copy.close()
    assert len(process.open_files()) == opened


def read_in_child(reader: AlohaHdf5Reader, queue: multiprocessing.Queue) -> None:
    for _ in range(20):
        values = reader.read(1, np.array([4]), KEYS)
    queue.put({k: v.tobytes() for k, v in values.items()})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_with_open_files_works_in_children(aloha_set: SetOnDisk, method: str) -> None:
    reader = AlohaHdf5Reader(aloha_set.folder)
    expected = {k: v.tobytes() for k, v in reader.read(1, np.array([4]), KEYS).items()}
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=read_in_child, args=(reader, queue)) for _ in range(2)]
    for child in children:
        child.start()
    answers = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert answers == [expected, expected]
    assert reader.read(1, np.array([4]), KEYS)["action"].tobytes() == expected["action"]


def test_memory_stays_flat(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    for compress in (False, True):
        for _ in range(6):
            with EpisodeWriter(tmp_path / str(compress), cameras={"top": (64, 96)}, sim=True, compress=compress) as w:
                for _ in range(10):
                    w.add(qpos=np.zeros(14), qvel=np.zeros(14), action=np.zeros(14), images={"top": image})
    readers = [AlohaHdf5Reader(tmp_path / name, open_files=3) for name in ("False", "True")]
    process = psutil.Process()

    def read(times: int) -> int:
        for i in range(times):
            readers[i % 2].read(i // 10 % 6, np.array([i % 10]), ("action", "proprio", "image_top"))
        return process.memory_info().rss

    before = read(400)
    # Keeping the 2,000 frames would take 37 MB.
    assert read(2000) - before < 5e6


def test_unknown_keys_and_steps(aloha_set: SetOnDisk) -> None:
    reader = AlohaHdf5Reader(aloha_set.folder)
    with pytest.raises(UserError, match="Did you mean 'image_top'"):
        reader.read(0, np.array([0]), ["image_tpo"])
    for steps in ([5], [-1]):
        with pytest.raises(ValueError, match="episode of 5 steps"):
            reader.read(0, np.array(steps), ["action"])


def rewrite(path: Path, where: str, values: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[where]
        if values is not None:
            file[where] = values


BAD_SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "that HDF5 refuses"),
    "no HDF5": (lambda p: p.write_text("hello"), "5 bytes that HDF5 refuses"),
    "empty file": (lambda p: p.write_bytes(b""), "0 bytes that HDF5 refuses"),
    "no action": (lambda p: rewrite(p, "action", None), "has no dataset /action"),
    "no qpos": (lambda p: rewrite(p, "observations/qpos", None), "has no dataset /observations/qpos"),
    "no camera": (lambda p: rewrite(p, "observations/images/wrist", None), "has no camera 'wrist'"),
    "action width": (lambda p: rewrite(p, "action", np.zeros((9, 13))), "has an action width 13, but 2 of the 3"),
    "qpos width": (lambda p: rewrite(p, "observations/qpos", np.zeros((9, 2))), "has a qpos width 2, but 2 of the 3"),
    "text actions": (lambda p: rewrite(p, "action", np.zeros((9, 14), "S3")), r"/action is \|S3 \(9, 14\)"),
    "flat actions": (lambda p: rewrite(p, "action", np.zeros(9)), r"/action is float64 \(9,\)"),
    "lengths": (lambda p: rewrite(p, "action", np.zeros((8, 14))), "/observations/qpos has 9 steps but /action has 8"),
    "frames": (
        lambda p: rewrite(p, "observations/images/top", np.zeros((4, *IMAGE, 3), np.uint8)),
        "/observations/images/top has 4 steps but /action has 9",
    ),
    "image size": (
        lambda p: rewrite(p, "observations/images/top", np.zeros((9, 6, 8, 3), np.uint8)),
        "has pictures of camera top: 6 x 8 pixels, but 2 of the 3",
    ),
    "float images": (
        lambda p: rewrite(p, "observations/images/top", np.zeros((9, *IMAGE, 3), np.float32)),
        "expected uint8 frames",
    ),
    "mixed sim": (
        lambda p: h5py.File(p, "r+").attrs.__setitem__("sim", False),
        "has attribute sim False, but 2 of the 3",
    ),
    "strange name": (lambda p: p.rename(p.with_name("episode_last.hdf5")), "not named episode_<number>.hdf5"),
}


@pytest.mark.parametrize("kind", BAD_SETS)
def test_bad_sets_are_refused_in_words(aloha_set: SetOnDisk, kind: str) -> None:
    damage, message = BAD_SETS[kind]
    damage(aloha_set.folder / "episode_1.hdf5")
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(aloha_set.folder)
    assert "episode_1.hdf5" in str(caught.value) or "episode_last.hdf5" in str(caught.value)


def test_a_missing_camera_can_be_left_out(aloha_set: SetOnDisk) -> None:
    rewrite(aloha_set.folder / "episode_1.hdf5", "observations/images/wrist", None)
    assert list(open_dataset(aloha_set.folder, cameras=["top"]).description.cameras) == ["top"]
    with pytest.raises(UserError, match="Did you mean 'top'"):
        open_dataset(aloha_set.folder, cameras=["tops"])


def test_a_set_without_images_can_be_read(aloha_set: SetOnDisk) -> None:
    for path in aloha_set.folder.iterdir():
        rewrite(path, "observations/images", None)
    reader = open_dataset(aloha_set.folder)
    assert reader.description.cameras == {}
    assert reader.read(0, np.array([0]), ["proprio"])["proprio"].shape == (1, 14)


def test_no_steps_is_refused(aloha_set: SetOnDisk) -> None:
    with h5py.File(aloha_set.folder / "episode_0.hdf5", "r+") as file:
        for where in ("action", "observations/qpos", "observations/images/top", "observations/images/wrist"):
            file[where].resize(0, axis=0)
    with pytest.raises(UserError, match=r"episode_0\.hdf5 holds no steps"):
        open_dataset(aloha_set.folder)


def test_a_damaged_frame_is_told_with_its_place(new_set: Callable[[], SetOnDisk]) -> None:
    made = new_set()
    path = made.add(4, compress=True)
    with h5py.File(path, "r+") as file:
        file["observations/images/top"][2] = np.frombuffer(b"no picture", np.uint8)
    reader = AlohaHdf5Reader(made.folder)
    reader.read(0, np.array([1]), ["image_top"])
    with pytest.raises(UserError, match=r"episode_0\.hdf5: cannot read image_top at steps \[2\]"):
        reader.read(0, np.array([2]), ["image_top"])


def test_encoded_frames_of_another_size_are_refused_when_met(new_set: Callable[[], SetOnDisk]) -> None:
    made = new_set()
    path = made.add(4, compress=True)
    with h5py.File(path, "r+") as file:
        file["observations/images/top"][2] = np.frombuffer(jpeg(np.zeros((6, 8, 3), np.uint8)), np.uint8)
    with pytest.raises(UserError, match=r"image_top at steps \[2\]: frame 2: 6 x 8 pixels, expected 12 x 16"):
        AlohaHdf5Reader(made.folder).read(0, np.array([2]), ["image_top"])


def test_an_episode_that_vanishes_is_told(aloha_set: SetOnDisk) -> None:
    reader = AlohaHdf5Reader(aloha_set.folder)
    (aloha_set.folder / "episode_1.hdf5").unlink()
    with pytest.raises(UserError, match=r"episode_1\.hdf5: it does not exist"):
        reader.read(1, np.array([0]), ["action"])


def test_holes_in_a_file_are_told_or_harmless(aloha_set: SetOnDisk) -> None:
    """A copy that was interrupted has the right size and zeros inside; HDF5 meets them with errors of many kinds."""
    path = sorted(aloha_set.folder.glob("episode_*.hdf5"))[0]
    whole = path.read_bytes()
    told = 0
    for start in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:start] + bytes(min(2048, len(whole) - start)) + whole[start + 2048 :])
        try:
            reader = AlohaHdf5Reader(aloha_set.folder)
            steps = np.arange(reader.lengths[0])
            reader.read(0, steps, ("action", "proprio", *(f"image_{camera}" for camera in reader.description.cameras)))
        except UserError as mistake:
            assert path.name in str(mistake)
            told += 1
    assert told >= 5
