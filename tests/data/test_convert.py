"""Conversion between all formats: exact where both can be, told where not; the same bytes whatever interrupts."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import edit_json
from lerobot_sets import write_set as write_lerobot
from written_sets import DESCRIPTION, KEYS, LENGTHS, instruction, make_episode, write_all

from vla_ft.cli import main
from vla_ft.data.convert import JOURNAL, RECORD, ConvertConfig, convert
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.npz_writer import NpzWriter
from vla_ft.data.formats.registry import WRITERS, open_dataset, open_writer
from vla_ft.errors import UserError

EXACT = {"aloha": "raw", "lerobot": "image", "lerobot21": "image", "npz": "png", "npy": "raw", "rlds": "png"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    writer = NpzWriter(tmp_path / "source", DESCRIPTION)
    write_all(writer)
    return writer.finish()


def told(source: Path, target: Path, format: str, **options: object) -> list[str]:
    """Convert, and return what was said."""
    lines: list[str] = []
    convert(ConvertConfig(source=str(source), target=str(target), format=format, **options), lines.append)  # type: ignore[arg-type]
    return lines


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".index")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def assert_same_steps(reader: EpisodeReader, image_error: float = 0) -> None:
    """Numbers equal to the bit in float32; images equal, or within a mean error."""
    assert reader.lengths.tolist() == list(LENGTHS)
    for number in range(len(LENGTHS)):
        wanted = make_episode(number)
        read = reader.read(number, np.arange(len(wanted)), KEYS)
        assert reader.instruction(number) == instruction(number)
        for key in KEYS:
            rows = np.stack([step[key] for step in wanted])
            if not key.startswith("image"):
                assert read[key].tobytes() == rows.astype(np.float32).tobytes()
            elif image_error:
                assert np.abs(read[key].astype(int) - rows).mean() < image_error
            else:
                assert np.array_equal(read[key], rows)


def test_around_all_formats_and_back(tmp_path: Path, source: Path) -> None:
    path = source
    order = ("aloha", "lerobot", "npy", "npz", "rlds", "lerobot21", "aloha", "npy", "rlds", "npz")
    for number, format in enumerate(order):
        told(path, tmp_path / f"{number}_{format}", format, images=EXACT[format])
        path = tmp_path / f"{number}_{format}"
        assert_same_steps(open_dataset(path))


@pytest.mark.parametrize(
    ("format", "images"), [(f, i) for f, (kind, _) in WRITERS.items() for i in kind.LOSSY & {*kind.IMAGES}]
)
def test_lossy_pictures_stay_near(tmp_path: Path, source: Path, format: str, images: str) -> None:
    lines = told(source, tmp_path / "out", format, images=images)
    assert f"not kept: exact pixels: pictures are stored as {images}" in lines
    assert_same_steps(open_dataset(tmp_path / "out"), image_error=8 if images == "video" else 4)


@pytest.mark.parametrize("format", WRITERS)
def test_writers_promise_what_readers_give(tmp_path: Path, format: str) -> None:
    strange = dataclasses.replace(
        DESCRIPTION, action_names=("x", "x", "gripper"), gripper_dims=(2,), action_kind="unknown",
        cameras={"primary": (12, 16), "wrist_image": (10, 14)},
    )  # fmt: skip
    for number, description in enumerate((DESCRIPTION, strange)):
        folder = tmp_path / f"{format}_{number}"
        writer = open_writer(folder, description, format, EXACT[format])
        rename = {f"image_{a}": f"image_{b}" for a, b in zip(DESCRIPTION.cameras, description.cameras, strict=True)}
        writer.add([{rename.get(k, k): v for k, v in step.items()} for step in make_episode(1)], "press")
        writer.finish()
        assert open_dataset(folder).description == writer.kept
        again = open_writer(folder, description, format, EXACT[format])
        assert again.done == 1
        assert again.finish()
        again.close()


def test_what_a_format_cannot_hold_is_told(tmp_path: Path, source: Path) -> None:
    assert told(source, tmp_path / "npz", "npz") == [f"4 episodes: {tmp_path / 'npz'}"]
    lines = told(source, tmp_path / "lerobot", "lerobot", images="image")
    assert "not kept: action_units 'm, m, fraction': it is read back as 'unknown, unknown, unknown'" in lines
    assert "not kept: action_kind 'joint': it is read back as 'unknown'" in lines
    assert not any("fps" in line or "action_names" in line for line in lines)
    kept = json.loads((tmp_path / "lerobot" / RECORD).read_text())
    assert kept["not kept"] == [line.removeprefix("not kept: ") for line in lines[:-1]]
    assert any("action_names 'x, y, gripper'" in line for line in told(source, tmp_path / "aloha", "aloha"))


def test_a_real_alohas_columns_and_shift(tmp_path: Path, source: Path) -> None:
    told(source, tmp_path / "sim", "aloha")
    for path in (tmp_path / "sim").glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            file.attrs["sim"] = False
    lines = told(tmp_path / "sim", tmp_path / "rlds", "rlds")
    assert "not kept: observations/qvel: it is not read from the source" in lines
    assert "not kept: action beyond float32 (it is float64): it is not read from the source" in lines
    assert any("actions begin 1 step before their observation" in line for line in lines)
    lines = told(tmp_path / "sim", tmp_path / "aloha", "aloha")
    assert not any("actions begin" in line for line in lines)
    assert open_dataset(tmp_path / "aloha").action_offset == -1
    with h5py.File(tmp_path / "aloha" / "episode_1.hdf5") as file:
        qpos = np.stack([step["proprio"] for step in make_episode(1)]).astype(np.float32).astype(float)
        np.testing.assert_allclose(file["observations/qvel"][1:], np.diff(qpos, axis=0) * DESCRIPTION.fps)
        assert not file["observations/qvel"][0].any()


def test_instructions_that_change_are_counted(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the record too, and of all episodes: also of those that were written before an interruption."""

    def at(self: EpisodeReader, episode: int, step: int) -> str:
        return f"part {step}" if episode in (0, 3) and step == 2 else self.instruction(episode)

    monkeypatch.setattr("vla_ft.data.formats.npz.NpzReader.instruction_at", at)
    line = "2 episodes change their instruction on the way, and have their first one throughout"
    assert f"not kept: {line}" in told(source, tmp_path / "out", "rlds")
    whole = json.loads((tmp_path / "out" / RECORD).read_text())
    assert line in whole["not kept"]
    with monkeypatch.context() as patch:
        assert not ends_within(7, patch, lambda: told(source, tmp_path / "again", "rlds"))
    lines = told(source, tmp_path / "again", "rlds")
    assert any(said.startswith("going on behind") for said in lines)
    assert json.loads((tmp_path / "again" / RECORD).read_text()) == whole


def test_digits_that_float32_has_not_are_told(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "set", "v2.1", "image")
    for file in path.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        place = table.schema.get_field_index("action")
        wide = table.column("action").cast(pa.list_(pa.float64(), 6))
        pq.write_table(table.set_column(place, pa.field("action", wide.type), wide), file)
    edit_json(path / "meta/info.json", lambda info: info["features"]["action"].update(dtype="float64"))
    assert "not kept: action beyond float32 (it is float64): it is not read from the source" in told(
        path, tmp_path / "out", "npz"
    )


class Killed(BaseException):
    """Stands for a kill: nothing catches it as an error."""


def ends_within(calls: int, patch: pytest.MonkeyPatch, run: Callable[[], object]) -> bool:
    """Whether ``run`` is done before the file system was asked ``calls`` times to change something for good."""
    left = iter(range(calls))

    def counted(old: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if next(left, None) is None:
                raise Killed
            return old(*arguments, **options)

        return call

    for name in ("replace", "rename", "fsync", "link", "unlink"):
        patch.setattr(os, name, counted(getattr(os, name)))
    try:
        run()
    except Killed:
        return False
    return True


@pytest.mark.parametrize("format", WRITERS)
def test_the_same_bytes_whatever_interrupts(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    (tmp_path / "whole").mkdir()
    told(source, tmp_path / "whole" / "set", format)
    whole, stops, every = contents(tmp_path / "whole"), 0, 4
    assert f"set/{RECORD}" in whole
    assert f"set/{JOURNAL}" not in whole
    while True:
        target = tmp_path / f"stopped_{stops}" / "set"
        with monkeypatch.context() as patch:
            if ends_within(stops, patch, lambda at=target: told(source, at, format)):  # type: ignore[misc]
                break
        told(source, target, format)
        assert contents(target.parent) == whole
        stops += every
    assert stops > 10
    assert told(source, target, format) == [f"It is there already. 4 episodes: {target}"]


@pytest.mark.parametrize(
    ("format", "blow"), [("lerobot", signal.SIGKILL), ("aloha", signal.SIGTERM), ("rlds", signal.SIGKILL)]
)
def test_a_blow_from_outside(tmp_path: Path, source: Path, format: str, blow: int) -> None:
    (tmp_path / "a").mkdir()
    told(source, tmp_path / "a" / "set", format, images=EXACT[format])
    words = [f"from={source}", f"to={tmp_path / 'b' / 'set'}", f"format={format}", f"images={EXACT[format]}"]
    slow = (
        "import sys, time, vla_ft.data.convert as c; from vla_ft.cli import main; old = c.steps_of\n"
        "def steps(*a):\n    for step in old(*a):\n        print('step', flush=True); time.sleep(0.05); yield step\n"
        "c.steps_of = steps; main(['data', 'convert', *sys.argv[1:]])"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = 0
    while seen < LENGTHS[0] + 3:
        seen += process.stdout.readline() == "step\n"
    process.send_signal(blow)
    process.communicate()
    assert process.returncode == -blow
    with pytest.raises(UserError, match=r"not finished|no known dataset"):
        open_dataset(tmp_path / "b" / "set")
    assert main(["data", "convert", *words]) == 0
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_damaged_episodes(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture) -> None:
    told(source, tmp_path / "in", "aloha")
    with h5py.File(tmp_path / "in" / "episode_1.hdf5", "r+") as file:
        file["action"][3, 1] = np.nan
    words = ["data", "convert", f"from={tmp_path / 'in'}", f"to={tmp_path / 'out'}", "--format", "npz"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "episode_1.hdf5: action at step 3 is" in said
    assert "1 of 4 episodes are written and kept" in said
    assert main([*words, "on_damage=skip"]) == 0
    said = capsys.readouterr().out
    assert "going on behind 1 of 4 episodes" in said
    assert f"3 episodes, 1 damaged ones left out (see {RECORD})" in said
    reader = open_dataset(tmp_path / "out")
    assert [reader.instruction(e) for e in range(3)] == [instruction(n) for n in (0, 2, 3)]
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert list(record["skipped"]) == ["1"]
    assert record["episodes"] == 3


@pytest.mark.parametrize("stop", [9, 11, 13, 15, 17])
def test_going_on_behind_a_skipped_episode(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    told(source, tmp_path / "in", "aloha")
    with h5py.File(tmp_path / "in" / "episode_1.hdf5", "r+") as file:
        file["action"][3, 1] = np.nan
    told(tmp_path / "in", tmp_path / "a" / "set", "npz", on_damage="skip")
    run = lambda: told(tmp_path / "in", tmp_path / "b" / "set", "npz", on_damage="skip")  # noqa: E731
    with monkeypatch.context() as patch:
        assert not ends_within(stop, patch, run)
    run()
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_other_sets_are_left_alone(tmp_path: Path, source: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for format in WRITERS:
        with pytest.raises(UserError, match=r"already holds something \(notes\.txt\), and nothing is overwritten"):
            told(source, tmp_path / "full", format)
        with pytest.raises(UserError, match="lie in each other"):
            told(source, source / "inside", format)
        told(source, tmp_path / format, format)
        before = contents(tmp_path / format)
        with pytest.raises(UserError, match="holds another conversion: cameras was 'None', now 'wrist'"):
            told(source, tmp_path / format, format, cameras=("wrist",))
        assert contents(tmp_path / format) == before
    with pytest.raises(UserError, match="holds another conversion: format"):
        told(source, tmp_path / "npz", "rlds")
    with pytest.raises(UserError, match="Unknown format to write 'lerobo'"):
        told(source, tmp_path / "x", "lerobo")
    with pytest.raises(UserError, match="Unknown way to store pictures in npz 'video'"):
        told(source, tmp_path / "x", "npz", images="video")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        told(source, tmp_path / "file", "npz")
    assert not (tmp_path / "x").exists()


def test_a_source_that_changed_is_not_mixed(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        assert not ends_within(12, patch, lambda: told(source, tmp_path / "out", "npz"))
    os.utime(source / "episode_000003.npz", (time.time() + 9, time.time() + 9))
    with pytest.raises(UserError, match="holds another conversion: times"):
        told(source, tmp_path / "out", "npz")


def test_mistyped_keys(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture) -> None:
    for words, message in (
        (["frm=x"], "Unknown key 'frm'. Did you mean 'from'?"),
        ([f"to={tmp_path / 'x'}", "format=npz"], "Key 'from' is missing"),
        ([f"from={source}", f"to={tmp_path / 'x'}", "format=npz", "split=val"], "Unknown option of format npz 'split'"),
    ):
        assert main(["data", "convert", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["data", "convrt"]) == 2
    assert "Unknown verb 'convrt'. Did you mean 'convert'?" in capsys.readouterr().err
    assert main(["data"]) == 2


@pytest.mark.parametrize("format", ["aloha", "lerobot", "npy", "npz"])
def test_memory_does_not_grow_with_an_episode(tmp_path: Path, format: str) -> None:
    """Peak of Python's and NumPy's memory over an episode of 150 steps and one of 900 (raw: 7 and 41 MB)."""
    about = dataclasses.replace(DESCRIPTION, cameras={"primary": (100, 150)})
    frame = np.arange(100 * 150 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 150, 3)
    peaks = []
    for length in (150, 900):
        writer = NpzWriter(tmp_path / f"in_{length}", about, images="jpeg")
        row = {"action": np.zeros(3), "proprio": np.zeros(2), "image_primary": frame}
        writer.add((row for _ in range(length)), "")
        writer.finish()
        tracemalloc.start()
        told(tmp_path / f"in_{length}", tmp_path / f"out_{length}", format)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5e6


@pytest.mark.parametrize("format", sorted(WRITERS))
def test_what_actions_are_can_be_said_for_every_format(tmp_path: Path, source: Path, format: str) -> None:
    told(source, tmp_path / "in", format, images=EXACT[format])
    reader = open_dataset(tmp_path / "in", action_kind="end_effector", action_mode="delta")
    assert (reader.description.action_kind, reader.description.action_mode) == ("end_effector", "delta")
    lines = told(tmp_path / "in", tmp_path / "out", "npz", action_kind="end_effector", action_mode="delta")
    assert not any("action_kind" in line for line in lines)
    kept = open_dataset(tmp_path / "out").description
    assert (kept.action_kind, kept.action_mode) == ("end_effector", "delta")


def test_rlds_claims_nothing_that_its_files_do_not_say(tmp_path: Path, source: Path) -> None:
    told(source, tmp_path / "rlds", "rlds")
    (tmp_path / "rlds" / "1.0.0" / "vla_ft.json").unlink()
    about = open_dataset(tmp_path / "rlds", fps=10).description
    assert (about.action_kind, about.action_mode, about.gripper) == ("unknown", "unknown", "unknown")
    told(tmp_path / "rlds", tmp_path / "npz", "npz", fps=10)
    assert open_dataset(tmp_path / "npz").description.action_kind == "unknown"


def test_the_usual_way_of_pictures_said_or_not_is_the_same(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out"
    told(source, target, "npz")
    assert told(source, target, "npz", images="png") == [f"It is there already. 4 episodes: {target}"]
    with pytest.raises(UserError, match="images was 'png', now 'raw'"):
        told(source, target, "npz", images="raw")
