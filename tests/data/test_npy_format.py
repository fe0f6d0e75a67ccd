"""The ACT guide's npy sets: every form gives the same steps, and every rule is told under the guide's own name."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import psutil
import pytest
from npy_sets import FORMS, KEYS, LENGTHS, PICKLED, SIZE, columns, dicts, write_arrays, write_dicts, write_numbers

from vla_ft.cli import main
from vla_ft.data.formats.npy import NpyReader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.errors import UserError


def opened(folder: Path, **options: object) -> NpyReader:
    reader = open_dataset(folder, allow_pickle=True, **options)
    assert isinstance(reader, NpyReader)
    return reader


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_steps(tmp_path: Path, form: str) -> None:
    values = columns()
    FORMS[form](tmp_path / "set", values)
    reader = opened(tmp_path / "set")
    wanted = dict(zip(KEYS, (values[n] for n in ("action", "state", "image_left", "image_right")), strict=True))
    assert (reader.lengths.dtype, reader.lengths.tolist()) == (np.int64, list(LENGTHS))
    assert reader.description.cameras == {"left": SIZE, "right": SIZE}
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._contents is None
    for one in (reader, copy):
        start = 0
        for episode, length in enumerate(LENGTHS):
            order = np.array([length - 1, 0, 1, 1, length - 1])
            read = one.read(episode, order, KEYS)
            for key in KEYS:
                assert read[key].dtype == wanted[key].dtype
                assert np.array_equal(read[key], wanted[key][start + order])
            start += length
    assert reader.read(0, np.array([], np.int64), KEYS)["image_left"].shape == (0, *SIZE, 3)
    assert reader.fingerprint() == copy.fingerprint()


def test_the_fingerprint_is_of_the_numbers_whatever_the_form(tmp_path: Path) -> None:
    for form, write in FORMS.items():
        write(tmp_path / form, columns())
    assert len({opened(tmp_path / form).fingerprint() for form in FORMS}) == 1
    path = tmp_path / "ours" / "vla_ft.json"
    path.write_text(path.read_text().replace("left_joint_0", "shoulder"))
    assert opened(tmp_path / "ours").fingerprint() != opened(tmp_path / "npz").fingerprint(), "statistics carry names"


@pytest.mark.parametrize("form", PICKLED)
def test_pickles_need_a_word(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / "set", columns())
    for options in ({}, {"allow_pickle": False}):
        with pytest.raises(UserError, match=r"is pickled.*data\.allow_pickle=true.*vla-ft data convert"):
            open_dataset(tmp_path / "set", **options)
    assert any("pickled: all of its" in line for line in opened(tmp_path / "set").remarks())
    assert not any("pickled" in line for line in _remarks(tmp_path, "files"))
    assert any("is compressed: all of its" in line for line in _remarks(tmp_path, "compressed"))


def _remarks(folder: Path, form: str) -> list[str]:
    FORMS[form](folder / form, columns())
    return open_dataset(folder / form).remarks()


def test_description_by_the_guide(tmp_path: Path) -> None:
    FORMS["files"](tmp_path / "my_set", columns())
    reader = open_dataset(tmp_path / "my_set")
    about = reader.description
    assert (about.name, about.fps, about.action_kind, about.action_mode) == ("my_set", 50.0, "joint", "absolute")
    assert about.action_names[:7] == (*(f"left_joint_{i}" for i in range(6)), "left_gripper")
    assert about.proprio_names[8:10] == ("right_joint_0", "right_joint_1")
    assert set(reader.assumed) == {"fps", "action_names", "action_kind", "action_mode"}
    told = open_dataset(tmp_path / "my_set", fps=10, cameras=["right"], instruction="fold", action_mode="delta")
    assert (told.description.fps, told.description.action_mode) == (10, "delta")
    assert list(told.description.cameras) == ["right"]
    assert told.instruction(2) == "fold"
    assert "fps" not in told.assumed
    assert told.unread() == ["image_left"]
    assert list(reader.sources()) == [
        "actions.npy", "rollout_length.npy", "observations/image_left.npy", "observations/image_right.npy",
        "observations/state.npy",
    ]  # fmt: skip


GUIDE = """
import numpy as np

# Load data
obs = np.load('your_dataset/observations.npy', allow_pickle=True)
actions = np.load('your_dataset/actions.npy')
rollout_lengths = np.load('your_dataset/rollout_length.npy')

# Verify
print(f"Total timesteps: {len(actions)}")
print(f"Number of episodes: {len(rollout_lengths)}")
print(f"Action shape: {actions.shape}")
print(f"Sum of rollout lengths: {rollout_lengths.sum()}")
assert rollout_lengths.sum() == len(actions), "Mismatch!"
print("✅ Dataset valid!")
"""
COUNTS = ["Total timesteps: 17", "Number of episodes: 3", "Action shape: (17, 14)", "Sum of rollout lengths: 17"]


@pytest.mark.parametrize("form", ["dicts", "arrays", "ours"])
def test_the_guides_verification_and_ours_print_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, form: str
) -> None:
    """Its snippet as it stands in the guide; what we write has no pickle, and the snippet opens it all the same."""
    monkeypatch.chdir(tmp_path)
    FORMS[form](tmp_path / "your_dataset", columns())
    with redirect_stdout(io.StringIO()) as said:
        exec(compile(GUIDE, "guide", "exec"), {})
    assert said.getvalue().splitlines() == [*COUNTS, "✅ Dataset valid!"]
    assert main(["data", "check", "your_dataset", "workers=0", "allow_pickle=true", "images=all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == COUNTS
    assert lines[-1] == "✅ Dataset valid!"


def test_what_we_write_is_indexed_like_dicts(tmp_path: Path) -> None:
    values = columns()
    FORMS["ours"](tmp_path / "set", values)
    obs = np.load(tmp_path / "set" / "observations.npy")
    assert np.array_equal(obs[3]["image_left"], values["image_left"][3])
    assert np.array_equal(obs["state"], values["state"])
    assert np.load(tmp_path / "set" / "rollout_length.npy").dtype == np.int64
    reader = open_dataset(tmp_path / "set")
    assert [reader.instruction(e) for e in range(3)] == ["task 0", "task 1", "task 0"]
    assert (reader.description.fps, reader.assumed, reader.remarks(), reader.unread()) == (20, {}, [], [])


def save(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Damage: an array saved again, changed."""
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


IMAGE, STATE = "observations/image_left.npy", "observations/state.npy"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no actions": (lambda p: (p / "actions.npy").unlink(), r"^Dataset not found: .* has no actions\.npy\. Expected"),
    "no lengths": (lambda p: (p / "rollout_length.npy").unlink(), r"^Dataset not found: .* has no rollout_length\.npy"),
    "sum": (
        save("rollout_length.npy", lambda a: a + 1),
        r"^Rollout length mismatch: the 3 lengths add up to 20 steps, actions\.npy has 17",
    ),
    "zero": (save("rollout_length.npy", lambda a: a * 0), "^Rollout length mismatch: .* has episodes of 0 to 0 steps"),
    "negative": (save("rollout_length.npy", lambda a: -a), "^Rollout length mismatch: .* of -8 to -3 steps"),
    "none": (save("rollout_length.npy", lambda a: a[:0]), "^Rollout length mismatch: .* of no episode"),
    "fractions": (
        save("rollout_length.npy", lambda a: a + 0.5),
        "^Rollout length mismatch: .*expected a list of whole",
    ),
    "2-d": (
        save("rollout_length.npy", lambda a: a[None]),
        r"^Rollout length mismatch: .*int64 \(1, 3\), expected a list",
    ),
    "lengths cut": (
        lambda p: (p / "rollout_length.npy").write_bytes((p / "rollout_length.npy").read_bytes()[:-3]),
        r"^Rollout length mismatch: .*which takes 152 bytes; it has 149",
    ),
    "counts": (save(STATE, lambda a: a[1:]), r"^Invalid observation format: state has 16 steps, actions\.npy has 17"),
    "channels": (
        save(IMAGE, lambda a: a.transpose(0, 3, 1, 2).copy()),
        r"^Invalid observation format: image_left in observations is uint8 \(17, 3, 5, 7\), expected uint8 \(steps, h",
    ),
    "grey": (save(IMAGE, lambda a: a[..., 0].copy()), r"^Invalid observation format: image_left .*\(17, 5, 7\)"),
    "wide": (save(IMAGE, lambda a: a.astype(np.int64)), "^Invalid observation format: image_left in .* is int64"),
    "no state": (
        lambda p: (p / STATE).unlink(),
        "^Invalid observation format: observations has image_left, image_right, expected image_left, image_right and",
    ),
    "no pictures": (
        lambda p: [(p / f"observations/image_{s}.npy").unlink() for s in ("left", "right")],
        "^Invalid observation format: observations has state, expected",
    ),
    "state": (
        save(STATE, lambda a: a[:, 0].copy()),
        r"^Invalid observation format: state .* float32 \(17,\), expected",
    ),
    "text": (save(STATE, lambda a: a.astype("U4")), "^Invalid observation format: state in observations is <U4"),
    "objects": (
        lambda p: np.save(p / STATE, np.array([None] * 17), allow_pickle=True),
        r"^Invalid observation format: .*state\.npy holds pickled Python objects, expected plain numbers",
    ),
    "actions": (save("actions.npy", lambda a: a[:, 0].copy()), r"^Invalid action format: .*float32 \(17,\), expected"),
    "actions cut": (
        lambda p: (p / "actions.npy").write_bytes((p / "actions.npy").read_bytes()[:-5]),
        r"^Invalid action format: .*actions\.npy is float32 \(17, 14\), which takes 1080 bytes; it has 1075",
    ),
    "twice": (
        lambda p: np.savez(p / "observations.npz", state=np.zeros(3)),
        r"^Invalid observation format: .* has observations\.npz and observations\. Keep the one",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_rule_is_told_under_the_guides_name(tmp_path: Path, kind: str) -> None:
    FORMS["files"](tmp_path / "set", columns())
    damage, message = WRONG[kind]
    damage(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path / "set", format="npy")


def test_names_of_the_guide_come_from_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    FORMS["files"](tmp_path / "set", columns())
    np.save(tmp_path / "set" / "rollout_length.npy", [6, 3, 9])
    for words, name in (
        (["data", "check", str(tmp_path / "nowhere")], "Dataset not found: "),
        (["data", "check", str(tmp_path / "set")], "Rollout length mismatch: "),
        (["data", "check", str(tmp_path / "set"), "data.cameras=[lft]"], "Rollout length mismatch: "),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"vla-ft: {name}")
    np.save(tmp_path / "set" / "rollout_length.npy", [6, 3, 8])
    assert main(["data", "check", str(tmp_path / "set"), "data.cameras=[lft]"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vla-ft: Invalid observation format: ")
    assert "has no image_lft. Did you mean 'left'" in said


def bad_step(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[np.ndarray], None]:
    return lambda steps: change(steps[7])


STEPS: dict[str, tuple[Callable[[np.ndarray], object], str]] = {
    "lacks": (bad_step(lambda s: s.pop("image_right")), "it lacks 'image_right'"),
    "more": (bad_step(lambda s: s.update(qvel=np.zeros(3))), "it has 'qvel', which other steps have not"),
    "size": (
        bad_step(lambda s: s.update(image_left=s["image_left"][1:])),
        r"'image_left' is uint8 \(4, 7, 3\), other steps have uint8 \(5, 7, 3\)",
    ),
    "width": (bad_step(lambda s: s.update(state=s["state"][:7])), r"'state' is float32 \(7,\), other steps have"),
    "list": (bad_step(lambda s: s.update(state=[1.0, 2.0])), "'state' is a list, expected an array of numbers"),
    "none": (lambda steps: steps.__setitem__(7, None), "it is a NoneType, expected a dict"),
    "objects": (
        bad_step(lambda s: s.update(state=np.array([None, 1]))),
        r"'state' is an array of objects \(2,\), expected an array of numbers",
    ),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_unlike_the_others_is_named(tmp_path: Path, kind: str) -> None:
    """Step 7 of all is the second of episode 1. A tolerant reader loses that episode alone."""
    values, (damage, message) = columns(), STEPS[kind]
    write_numbers(tmp_path / "set", values)
    steps = dicts(values)
    damage(steps)
    np.save(tmp_path / "set" / "observations.npy", steps, allow_pickle=True)
    with pytest.raises(UserError, match=rf"^Invalid observation format: .*: episode 1, step 1: {message}"):
        opened(tmp_path / "set")
    tolerant = opened(tmp_path / "set", tolerant=True)
    assert np.array_equal(tolerant.read(2, np.arange(8), ("proprio",))["proprio"], values["state"][9:])
    with pytest.raises(UserError, match=f"episode 1, step 1: {message}"):
        tolerant.read(1, np.arange(3), ("action",))


def test_the_same_dict_twice_and_numbers_of_one(tmp_path: Path) -> None:
    """A pickle keeps one object where a recorder appended the same dict again."""
    values = columns()
    steps = dicts(values)
    steps[4] = steps[3]
    for step in steps:
        step["time"] = 0.5
    write_numbers(tmp_path / "set", values)
    np.save(tmp_path / "set" / "observations.npy", steps, allow_pickle=True)
    reader = opened(tmp_path / "set")
    read = reader.read(0, np.array([3, 4]), ("proprio",))["proprio"]
    assert np.array_equal(read[0], read[1])
    assert reader.unread() == ["time"]


def test_other_types_are_cast_and_told(tmp_path: Path) -> None:
    values = columns()
    cast = {
        "action": values["action"].astype(">f8"),
        "state": np.asfortranarray(values["state"].astype(np.float64)),
        "image_left": values["image_left"].astype(np.float32) / 255,
        "image_right": values["image_right"],
    }
    for form in ("files", "arrays", "dicts"):
        FORMS[form](tmp_path / form, cast)
        reader = opened(tmp_path / form)
        for episode, length in enumerate(LENGTHS):
            start = sum(LENGTHS[:episode])
            read = reader.read(episode, np.arange(length), KEYS)
            for key, name in zip(KEYS, ("action", "state", "image_left", "image_right"), strict=True):
                assert np.array_equal(read[key], values[name][start : start + length]), (form, key)
        said = "\n".join(reader.remarks())
        assert "actions.npy is float64, big-endian: read as float32" in said
        assert "state is float64: read as float32" in said
        assert "image_left is float32: values of 0 to 1 are read as 8 bits" in said
        assert "image_right" not in said


def test_float_pictures_of_other_ranges_are_refused(tmp_path: Path) -> None:
    for number, bad in enumerate((131.0, -0.1, np.nan)):
        values = columns()
        values["image_left"] = values["image_left"].astype(np.float32) / 255
        values["image_left"][10, 2, 3, 1] = bad
        FORMS["files"](tmp_path / str(number), values)
        reader = open_dataset(tmp_path / str(number))
        reader.read(0, np.arange(6), ("image_left",))
        with pytest.raises(
            UserError, match=rf"^Invalid observation format: .*episode 2, image_left: step 1 holds {bad:g}, expected"
        ):
            reader.read(2, np.arange(8), ("image_left",))


def test_checks_of_the_numbers(tmp_path: Path) -> None:
    """Rules that need all numbers: not finite, constant, jumps, lengths out of all proportion."""
    lengths = (*(12,) * 30, 90)
    values, wave = columns(lengths), np.sin(np.arange(sum(lengths)) / 9)[:, None]
    values["action"] = np.repeat(wave, 14, axis=1).astype(np.float32)
    values["state"] = np.repeat(wave, 16, axis=1).astype(np.float32)
    values["action"][:, 3] = 0.25
    values["action"][41, 5] = np.inf
    values["state"][50, 0] = 9
    FORMS["files"](tmp_path / "set", values, lengths)
    report = tmp_path / "report.json"
    assert main(["data", "check", str(tmp_path / "set"), "workers=0", f"output={report}", "chunk=13"]) == 1
    found = {
        (f["level"], f["kind"], f["episode"], f["step"]): f["message"]
        for f in json.loads(report.read_text())["findings"]
    }
    assert ("error", "not finite", 3, 5) in found
    assert ("warning", "jump", 4, 2) in found
    assert ("warning", "constant", None, None) in found
    assert sum(kind == "short" for _, kind, _, _ in found) == 30
    message = found["warning", "length", None, None]
    assert message.startswith("1 of 31 episodes are more than 3 standard deviations from the mean length of 15 steps")
    assert message.endswith("episode 30 with 90")


def test_sets_of_ours_whose_parts_do_not_fit(tmp_path: Path) -> None:
    FORMS["ours"](tmp_path / "set", columns())
    path = tmp_path / "set" / "vla_ft.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"layout": "vla_ft npy 9"}, "has layout 'vla_ft npy 9'"),
        ({"instruction_of": [0, 1]}, "instructions are not one for each of 3 episodes"),
        ({"instruction_of": [0, 1, 7]}, "instructions are not one for each"),
        ({"description": {**content["description"], "cameras": {"left": [5, 7]}}}, r"describes 14 action and 16 state"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=message):
            open_dataset(tmp_path / "set")
    path.write_text(json.dumps(content))
    (tmp_path / "set" / "checksums.npy").unlink()
    with pytest.raises(UserError, match=r"has no checksums\.npy, with which it was written"):
        open_dataset(tmp_path / "set")


def test_a_changed_bit_is_named_by_episode_step_and_column(tmp_path: Path) -> None:
    values = columns()
    FORMS["ours"](tmp_path / "set", values)
    path = tmp_path / "set" / "observations.npy"
    content = bytearray(path.read_bytes())
    record = 2 * 3 * SIZE[0] * SIZE[1] + 4 * 16
    content[len(content) - 2 * record + 3] ^= 1  # the last step but one, its first picture
    path.write_bytes(content)
    reader = open_dataset(tmp_path / "set")
    reader.read(2, np.arange(8), ("action", "proprio", "image_right"))
    reader.read(2, np.arange(6), KEYS)
    with pytest.raises(UserError, match="episode 2, image_left: the checksum of step 6 is not the stored one"):
        reader.read(2, np.arange(8), ("image_left",))


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """A memory map would end the process here."""
    FORMS["files"](tmp_path / "set", columns())
    reader = open_dataset(tmp_path / "set")
    reader.read(2, np.arange(8), KEYS)
    path = tmp_path / "set" / IMAGE
    with path.open("r+b") as file:
        file.truncate(900)
    with pytest.raises(UserError, match=r"episode 2, image_left: image_left\.npy ends \d+ bytes too early"):
        reader.read(2, np.arange(8), KEYS)


def test_the_raw_layout_says_what_is_missing(tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        (
            (lambda p: (p / "metadata.txt").unlink(), r"^Invalid action format: .* is no \.npy file \(it begins with"),
            (lambda p: edit(p, "sample_count=17 ", "sample_count= "), "has sample_count='', expected a number above 0"),
            (
                lambda p: edit(p, "width=7", "width=8"),
                r"^Invalid observation format: .*observations\.npy has \d+ bytes",
            ),
            (lambda p: edit(p, "rollout_count=3", "rollout_count=4"), "^Rollout length mismatch: .*counts 4"),
            (lambda p: edit(p, " sample_count=17", " sample_count=16"), "^Rollout length mismatch: .*up to 17 steps"),
            (lambda p: edit(p, "total_sample_count=21", "total_sample_count=9"), "counts 17 samples of 9 allocated"),
        )
    ):
        folder = tmp_path / str(number)
        FORMS["raw"](folder, columns())
        change(folder)
        with pytest.raises(UserError, match=message):
            open_dataset(folder)


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "metadata.txt").read_text()
    assert old in text
    (folder / "metadata.txt").write_text(text.replace(old, new))


def test_pictures_are_not_read_for_numbers_and_memory_stays_flat(tmp_path: Path) -> None:
    """80 MB of pictures in a file: all numbers and a few windows take a small part of that."""
    lengths, shape = (400, 400), (800, 128, 256, 3)
    write_numbers(tmp_path / "set", {"action": np.zeros((800, 14), np.float32)}, lengths)
    (tmp_path / "set" / "observations").mkdir()
    np.save(tmp_path / "set" / STATE, np.zeros((800, 16), np.float32))
    np.lib.format.open_memmap(tmp_path / "set" / IMAGE, "w+", np.uint8, shape).flush()
    reader, process = open_dataset(tmp_path / "set"), psutil.Process()
    reader.read(0, np.arange(2), ("image_left", "action"))
    before = process.memory_info().rss
    for episode in (0, 1):
        reader.read(episode, np.arange(400), ("action", "proprio"))
        for step in range(0, 400, 7):
            reader.read(episode, np.array([step]), ("image_left",))
    assert process.memory_info().rss - before < 10e6
    assert len(process.open_files()) < 40


def test_converting_a_pickled_set_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What the refusal advises, as it is written there; the copy needs no word and holds the same numbers."""
    values = columns()
    write_dicts(tmp_path / "in", values)
    words = ["data", "convert", f"from={tmp_path / 'in'}", f"to={tmp_path / 'out'}", "format=npy"]
    assert main(words) == 2
    assert "is pickled" in capsys.readouterr().err
    assert main([*words, "allow_pickle=true"]) == 0
    reader = open_dataset(tmp_path / "out")
    assert reader.fingerprint() == opened(tmp_path / "in").fingerprint()
    assert np.array_equal(reader.read(1, np.arange(3), ("image_right",))["image_right"], values["image_right"][6:9])
    write_arrays(tmp_path / "arrays", values)
    assert main(["data", "convert", f"from={tmp_path / 'arrays'}", f"to={tmp_path / 'x'}", "format=npz"]) == 2
    with pytest.raises(UserError, match="Unknown option of format npz 'allow_pickle'"):
        (tmp_path / "npz").mkdir()
        open_dataset(tmp_path / "npz", format="npz", allow_pickle=True)
