"""The npz reader: rows without the rest, the ways in which NumPy stores arrays, and every bad input."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from written_sets import DESCRIPTION, KEYS, LENGTHS, assert_equal, make_episode, write_all

from vla_ft.data.formats import npz as npz_module
from vla_ft.data.formats.npz import NpzReader
from vla_ft.data.formats.npz_writer import NpzWriter
from vla_ft.data.formats.registry import open_dataset
from vla_ft.errors import UserError


@pytest.fixture
def npz_set(tmp_path: Path) -> Path:
    writer = NpzWriter(tmp_path / "set", DESCRIPTION)
    write_all(writer)
    return writer.finish()


def resave(path: Path, save: Callable = np.savez, **changes: np.ndarray | None) -> None:
    """Write an episode again with some members changed or (None) left out."""
    with np.load(path) as kept:
        arrays = {**kept, **changes}
    with path.open("wb") as file:
        save(file, **{name: values for name, values in arrays.items() if values is not None})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes(npz_set: Path, save: Callable) -> None:
    for number in range(len(LENGTHS)):
        resave(npz_set / f"episode_{number:06d}.npz", save)
    assert_equal(open_dataset(npz_set))


def test_raw_pixels_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = NpzWriter(tmp_path / "set", DESCRIPTION, images="raw")
    write_all(writer)
    reader = open_dataset(writer.finish(), cameras=["wrist"])
    assert list(reader.description.cameras) == ["wrist"]
    wanted = np.stack([step["image_wrist"] for step in make_episode(1)])
    reader.read(1, np.array([0]), ("image_wrist",))
    sizes = []
    real = npz_module.read_rows
    monkeypatch.setattr(npz_module, "read_rows", lambda *a: sizes.append((out := real(*a)).nbytes) or out)
    monkeypatch.setattr(npz_module, "verify", lambda *_: pytest.fail("a member is checked once a process"))
    for steps in ([3], [4, 0, 4], [2, 1], []):
        read = reader.read(1, np.array(steps, np.int64), ("image_wrist",))["image_wrist"]
        assert np.array_equal(read, wanted[steps] if steps else wanted[:0])
    assert sizes == [10 * 14 * 3 * n for n in (1, 2, 2, 0)]


def test_options_and_fingerprint(npz_set: Path, tmp_path: Path) -> None:
    reader = open_dataset(npz_set, fps=3, instruction="unused", name="other")
    assert isinstance(reader, NpzReader)
    assert (reader.description.fps, reader.description.name) == (3, "other")
    before = reader.fingerprint()
    resave(npz_set / "episode_000001.npz", np.savez_compressed, instruction=np.empty(0, np.uint8))
    assert open_dataset(npz_set).fingerprint() == before
    assert open_dataset(npz_set, instruction="do it").instruction(1) == "do it"
    resave(npz_set / "episode_000001.npz", proprio=np.zeros((5, 2), np.float32))
    assert open_dataset(npz_set).fingerprint() != before
    with pytest.raises(UserError, match="Did you mean 'wrist'"):
        open_dataset(npz_set, cameras=["wrst"])
    with pytest.raises(UserError, match=r"data\.fps is -1"):
        open_dataset(npz_set, fps=-1)
    with pytest.raises(UserError, match="Did you mean 'action'"):
        reader.read(0, np.array([0]), ("actions",))
    with pytest.raises(ValueError, match="episode of 3 steps"):
        reader.read(0, np.array([3]), ("action",))


def test_few_layouts_are_kept_and_pickling_carries_none(npz_set: Path) -> None:
    reader = NpzReader(npz_set, open_files=2)
    process = psutil.Process()
    opened = len(process.open_files())
    for episode in (0, 1, 2, 3, 0):
        reader.read(episode, np.array([0]), KEYS)
    assert len(reader._opened) == 2
    assert len(process.open_files()) == opened
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._opened
    assert_equal(copy)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-40]), "no whole zip file"),
    "empty": (lambda p: p.write_bytes(b""), "no whole zip file"),
    "no action": (lambda p: resave(p, action=None), "there is no member action"),
    "width": (
        lambda p: resave(p, action=np.zeros((5, 4), np.float32)),
        r"action has shape \(5, 4\), expected \(5, 3\)",
    ),
    "steps": (lambda p: resave(p, proprio=np.zeros((4, 2))), r"proprio has shape \(4, 2\)"),
    "text": (lambda p: resave(p, action=np.full((5, 3), "x")), "action is <U1 .*expected plain numbers"),
    "order": (lambda p: resave(p, action=np.asfortranarray(np.zeros((5, 3)))), "in Fortran order"),
    "pickle": (lambda p: resave(p, action=np.full((5, 3), None)), "expected plain numbers"),
    "offsets": (
        lambda p: resave(p, **{"image_wrist.offsets": np.array([0, 1, 2, 3, 4, 5])}),
        "the offsets do not divide",
    ),
    "image": (
        lambda p: resave(p, **{"image_wrist.data": np.zeros(5, np.uint8), "image_wrist.offsets": np.arange(6)}),
        "1 bytes that are no JPEG or PNG",
    ),
    "raw size": (
        lambda p: resave(p, image_wrist=np.zeros((5, 9, 14, 3), np.uint8)),
        r"image_wrist has shape \(5, 9, 14, 3\)",
    ),
    "changed": (lambda p: flip(p, "action"), "the checksum of action is not the stored one"),
}


def flip(path: Path, member: str) -> None:
    """Change one bit of a member's numbers."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{member}.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 190] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("kind", BAD)
def test_bad_episodes_are_refused_in_words(npz_set: Path, kind: str) -> None:
    damage, message = BAD[kind]
    damage(npz_set / "episode_000001.npz")
    reader = open_dataset(npz_set)
    reader.read(0, np.arange(3), KEYS)
    with pytest.raises(UserError, match=rf"episode_000001\.npz: .*{message}"):
        reader.read(1, np.arange(5), KEYS)


def test_bad_sets(npz_set: Path) -> None:
    path = npz_set / "dataset.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"layout": "vla_ft npz 9"}, "has layout 'vla_ft npz 9', expected 'vla_ft npz 1'"),
        ({"lengths": [3, "x"]}, "'lengths' is no list of numbers"),
        ({"lengths": [3, 0]}, "'lengths' is no list of numbers"),
        ({"description": {}}, "describes no dataset"),
        ({"lengths": [*LENGTHS, 9]}, r"lacks episode_000004\.npz, but dataset\.json lists 5"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=message):
            open_dataset(npz_set)
    path.unlink()
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        open_dataset(npz_set)
