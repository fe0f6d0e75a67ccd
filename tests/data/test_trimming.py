"""Still beginnings and short episodes, wordings of instructions, sets of several folders, registration files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_ft.cli import main
from vla_ft.config import DataConfig
from vla_ft.data.formats import aloha_index
from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.aloha_instructions import FILE
from vla_ft.data.formats.aloha_layout import UNFINISHED
from vla_ft.data.formats.registry import format_of
from vla_ft.data.loading import build_loader, worded
from vla_ft.data.mixture import split_parts
from vla_ft.data.opening import find_mix
from vla_ft.data.order import BatchPlan
from vla_ft.data.sample import Sample
from vla_ft.data.trimming import TrimmedReader, moving_from
from vla_ft.data.windows import WindowSpec, build_sample
from vla_ft.errors import UserError

WORDINGS = {"instruction": "lift it", "simplified_instruction": ["lift"], "expanded_instruction": ["lift it up", "up"]}


def write(path: Path, length: int, still: int = 0, sim: bool = False) -> None:
    """An episode whose first joint moves by 0.1 a step after ``still`` steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    qpos = np.zeros((length, 3), dtype=np.float32)
    qpos[:, 0] = 0.1 * np.maximum(0, np.arange(length) - still + 1)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = sim
        file["action"] = qpos + 1
        file["observations/qpos"] = qpos
        file["observations/images/top"] = np.zeros((length, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks: one with a still beginning and wordings, one with a short episode and one that never moves."""
    write(tmp_path / "set" / "task_a" / "episode_0.hdf5", 12, still=4)
    (tmp_path / "set" / "task_a" / FILE).write_text(json.dumps(WORDINGS))
    write(tmp_path / "set" / "task_b" / "episode_0.hdf5", 10)
    write(tmp_path / "set" / "task_b" / "episode_1.hdf5", 5)
    write(tmp_path / "set" / "task_b" / "episode_2.hdf5", 10, still=20)
    return tmp_path / "set"


def test_a_set_of_task_folders_is_one_set(folder: Path) -> None:
    assert format_of(folder) == "aloha_hdf5"
    reader = AlohaHdf5Reader(folder)
    names = [reader.name_of(e) for e in range(4)]
    assert names == ["task_a/episode_0.hdf5", *(f"task_b/episode_{i}.hdf5" for i in range(3))]
    assert list(reader.sources()) == names
    assert reader.instruction(0) == "lift it" and reader.instruction(1) == ""
    assert reader.instruction_variants(0) == (("lift it",), ("lift",), ("lift it up", "up"))
    assert reader.instruction_variants(1) == (("",),)


def test_a_set_of_task_folders_is_kept_by_its_relative_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_FT_CACHE", str(tmp_path / "cache"))
    for file in folder.rglob("*.hdf5"):
        os.utime(file, (1e9, 1e9))
    first = AlohaHdf5Reader(folder)
    print_of = first.fingerprint()
    (folder / "task_a" / FILE).write_text(json.dumps(WORDINGS | {"instruction": "lift"}))
    monkeypatch.setattr(aloha_index, "inspect_episode", None)
    monkeypatch.setattr(AlohaHdf5Reader, "_hash_numbers", None)
    again = AlohaHdf5Reader(folder)
    assert again.fingerprint() == print_of and again.lengths.tolist() == [12, 10, 5, 10]
    assert [again.name_of(e) for e in range(4)] == [first.name_of(e) for e in range(4)]
    assert again.instruction(0) == "lift", "wordings are read at every opening"
    (folder / "task_a").rename(folder / "task_c")
    monkeypatch.undo()
    monkeypatch.setenv("VLA_FT_CACHE", str(tmp_path / "cache"))
    moved = AlohaHdf5Reader(folder)
    assert moved.name_of(3) == "task_c/episode_0.hdf5" and moved.fingerprint() != print_of


def test_a_task_folder_that_is_not_finished_is_refused(folder: Path) -> None:
    (folder / "task_b" / UNFINISHED).touch()
    with pytest.raises(UserError, match="task_b is not finished"):
        AlohaHdf5Reader(folder)


def test_still_beginnings_are_skipped_and_short_episodes_named(folder: Path) -> None:
    reader = DataConfig(path="", skip_still=0.01, shortest=8).open(str(folder))
    assert isinstance(reader, TrimmedReader)
    assert reader.starts.tolist()[:2] == [3, 0] and reader.lengths.tolist()[:2] == [9, 10]
    assert reader.left_out == {
        2: "task_b/episode_1.hdf5 has 5 steps, fewer than data.shortest=8",
        3: "task_b/episode_2.hdf5 never moves by more than data.skip_still=0.01",
    }
    first = reader.read(0, np.array([0, 1]), ("proprio",))["proprio"]
    np.testing.assert_allclose(first[:, 0], [0.0, 0.1], atol=1e-7)
    assert len(reader.all_proprio(0)) == reader.recorded_length(0) == 12
    split, dropped = split_parts(reader, fraction=0.5, seed=0)
    assert sorted([*split.training, *split.validation]) == [0, 1]
    assert "2 of 4 episodes left out: task_b/episode_1.hdf5 has 5 steps" in str(dropped)


def test_nothing_left_is_an_error_that_says_why(folder: Path) -> None:
    reader = DataConfig(path="", shortest=50).open(str(folder))
    with pytest.raises(UserError, match=r"0 of 4 are usable \(task_a/episode_0.hdf5 has 12 steps"):
        split_parts(reader, fraction=0.0, seed=0)


def test_first_movement() -> None:
    assert moving_from(np.array([[0.0, 1.0], [0.009, 1.0], [0.0, 0.98]]), 0.01) == 2
    assert moving_from(np.zeros((4, 2)), 0.01) is None


def test_a_window_may_say_where_chunks_begin_and_what_surrounds_it(folder: Path) -> None:
    reader = TrimmedReader(AlohaHdf5Reader(folder, fps=25.0), 0.01, 1)
    assert reader.action_offset == -1
    window = WindowSpec(observation_steps=2, action_horizon=2, action_offset=0, surroundings=True)
    sample = build_sample(reader, 0, 0, window, ("proprio",))
    np.testing.assert_allclose(sample["action"][:, 0], [1.0, 1.1], atol=1e-6)
    assert sample["observation"]["pad_mask"].tolist() == [False, True]
    assert sample["observation"]["episode_proprio"].shape == (12, 3)
    assert sample["observation"]["control_frequency"] == 25.0


class Words:
    """Collates nothing but the instructions, as their lengths."""

    window = WindowSpec()
    keys = ("proprio",)

    def collate(self, samples: list[Sample]) -> dict[str, object]:
        return {"texts": [sample["task"]["language_instruction"] for sample in samples]}


def test_wordings_are_drawn_by_seed_and_position(folder: Path) -> None:
    reader = AlohaHdf5Reader(folder)

    def texts(wordings: int | None, start: int = 0) -> list[str]:
        loader = build_loader(
            reader, np.array([0]), Words(), BatchPlan(per_device=120), seed=0, wordings=wordings, start=start, steps=1
        )
        return next(iter(loader))["texts"]

    assert set(texts(None)) == {"lift it"}
    drawn = texts(7)
    shares = {text: drawn.count(text) / len(drawn) for text in set(drawn)}
    assert shares.keys() == {"lift it", "lift", "lift it up", "up"}
    assert abs(shares["lift it"] - 1 / 3) < 0.13 and abs(shares["up"] - 1 / 6) < 0.1
    assert texts(7) == drawn and texts(8) != drawn
    assert texts(7, start=40)[:80] == drawn[40:]


def test_every_wording_can_be_drawn() -> None:
    groups = (("a",), ("b", "c"))
    assert {worded(groups, draw) for draw in range(4)} == {"a", "b", "c"}


def test_a_broken_file_of_wordings_is_refused(folder: Path) -> None:
    (folder / "task_a" / FILE).write_text('{"instruction": ""}')
    with pytest.raises(UserError, match="an instruction is missing or no text"):
        AlohaHdf5Reader(folder)


def register(folder: Path, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_the_published_registration_files_are_a_mix(tmp_path: Path) -> None:
    configs = register(
        tmp_path / "configs",
        finetune_datasets=["agilex", "mine"],
        dataset_control_freq={"agilex": 25, "mine": 0, "other": 5},
        finetune_sample_weights={"agilex": 100},
    )
    entries = find_mix(str(configs))
    assert {name: (entry.fps, entry.weight) for name, entry in entries.items()} == {
        "agilex": (25.0, 100.0), "mine": (None, 1.0)
    }  # fmt: skip
    register(configs, finetune_datasets=["agilexx"])
    with pytest.raises(UserError, match=r"no control frequency for it. Did you mean 'agilex'"):
        find_mix(str(configs))
    register(configs, finetune_datasets={"a": 1})
    with pytest.raises(UserError, match="Expected a JSON list"):
        find_mix(str(configs))


def test_an_entry_of_a_mix_has_its_own_rate(folder: Path) -> None:
    mix = {"one": {"path": "task_a", "fps": 25.0}, "two": {"path": "task_b", "fps": 10.0}}
    reader = DataConfig(path="", mix={k: find_entry(v) for k, v in mix.items()}, skip_still=0.01).open(str(folder))
    window = WindowSpec(surroundings=True)
    rates = [build_sample(reader, e, 0, window, ("proprio",))["observation"]["control_frequency"] for e in (0, 1)]
    assert rates == [25.0, 10.0]
    assert reader.left_out == {3: "two: episode_2.hdf5 never moves by more than data.skip_still=0.01"}


def find_entry(values: dict[str, object]) -> object:
    from vla_ft.data.opening import MixEntry

    return MixEntry(**values)  # type: ignore[arg-type]


def checked(folder: Path, tmp_path: Path, *words: str) -> dict[str, object]:
    output = tmp_path / "check.json"
    main(["data", "check", str(folder), "data.fps=5", "workers=0", "chunk=3", f"output={output}", *words])
    return json.loads(output.read_text())  # type: ignore[no-any-return]


def test_a_check_tells_what_training_would_leave_out_and_skip(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checked(folder, tmp_path, "data.shortest=8", "data.skip_still=0.01")
    reader = DataConfig(path="", skip_still=0.01, shortest=8).open(str(folder))
    assert found["left_out"] == list(reader.left_out) == [2, 3]
    assert found["skipped"] == {"task_a/episode_0.hdf5": int(reader.starts[0])} == {"task_a/episode_0.hdf5": 3}
    assert found["read"] == int(reader.lengths[:2].sum()) == 19 and found["steps"] == 37
    said = capsys.readouterr().out
    assert "  task_b/episode_1.hdf5: has 5 steps, fewer than data.shortest=8\n" in said
    assert "  task_b/episode_2.hdf5: never moves by more than data.skip_still=0.01\n" in said
    assert "3 steps skipped in 1 of 4 episodes, most in task_a/episode_0.hdf5 (3); a run reads 19 of 37" in said
    assert "2 episodes left out" in said


def test_without_these_options_a_check_leaves_nothing_out(folder: Path, tmp_path: Path) -> None:
    found = checked(folder, tmp_path)
    assert (found["left_out"], found["skipped"], found["read"]) == ([], {}, 37)


def test_what_is_wrong_in_an_episode_that_training_leaves_out_is_no_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(folder / "task_b" / "episode_1.hdf5", "r+") as file:
        file["action"][2, 0] = np.nan
    assert checked(folder, tmp_path)["errors"] == 1
    found = checked(folder, tmp_path, "data.shortest=8")
    assert (found["errors"], found["left_out"]) == (0, [2])
    nothing = checked(folder, tmp_path, "data.shortest=50")
    assert (nothing["errors"], nothing["read"], nothing["left_out"]) == (1, 0, [0, 1, 2, 3])
    assert "every episode is left out" in capsys.readouterr().out
