"""Datasets of different formats in one mix: what one does not say, another may; options of each; folders of several."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from any_format import DESCRIPTION, write_set

from vla_ft.config import load_run_config
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.opening import MixEntry, open_mixture
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.wrapping import WrappedReader
from vla_ft.errors import UserError


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for format in ("npz", "lerobot", "rlds"):
        write_set(tmp_path / format, format)
    return tmp_path


def test_three_formats_in_one_mix(sets: Path) -> None:
    """LeRobot says neither units nor what actions are."""
    for order in (("npz", "lerobot", "rlds"), ("lerobot", "rlds", "npz")):
        mixed = open_mixture(sets, {name: MixEntry() for name in order}, None, None, {})
        for field in dataclasses.fields(DatasetDescription):
            if field.name not in ("name", "rates"):
                assert getattr(mixed.description, field.name) == getattr(DESCRIPTION, field.name), field.name
        assert mixed.description.rates == dict.fromkeys(order, DESCRIPTION.fps)
        assert mixed.read(0, np.arange(2), ["action", "proprio"])["proprio"].shape == (2, 2)


def described(path: Path, **change: object) -> WrappedReader:
    reader = WrappedReader(open_dataset(path))
    reader.description = dataclasses.replace(reader.description, **change)  # type: ignore[arg-type]
    return reader


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("action_units", ("deg", "deg", "fraction")),
        ("action_kind", "end_effector"),
        ("action_mode", "delta"),
        ("gripper", "1 closed, 0 open"),
        ("gripper_dims", (0,)),
        ("action_names", ("action_0", "action_1", "action_2")),
    ],
)
def test_what_two_say_differently_is_refused_whatever_stands_between(sets: Path, what: str, value: object) -> None:
    parts = {
        "silent": described(sets / "lerobot", **({what: value} if what == "action_names" else {})),
        "one": described(sets / "npz"),
        "other": described(sets / "npz", **{what: value}),
    }
    with pytest.raises(UserError, match=f"cannot be mixed: {what} is"):
        MixtureReader(parts, dict.fromkeys(parts, 1.0))


def test_options_of_one_dataset(sets: Path) -> None:
    """A reader's own options, which another format would refuse."""
    entries = {
        "rlds": MixEntry(fps=7.0, split="train", action_mode="absolute", action=("action",)),
        "npz": MixEntry(instruction="push"),
        "lerobot": MixEntry(action_kind="joint"),
    }
    mixed = open_mixture(sets, entries, None, None, {})
    assert [part.description.fps for part in mixed.parts.values()] == [7.0, 5.0, 5.0]
    over = open_mixture(sets, {"rlds": MixEntry(fps=7.0), "npz": MixEntry()}, None, None, {"fps": 9.0})
    assert [part.description.fps for part in over.parts.values()] == [7.0, 9.0], "its own goes before that of all"
    with pytest.raises(UserError, match="Unknown option of format npz 'split'"):
        open_mixture(sets, {"npz": MixEntry(split="train")}, None, None, {})
    config = load_run_config(["recipe=act-mock", "data.mix.a.path=x", "data.mix.a.fps=3", "data.mix.a.sim=true"])
    assert (config.data.mix["a"].fps, config.data.mix["a"].sim) == (3.0, True)  # type: ignore[index, union-attr]


def test_a_folder_of_several_sets_is_not_taken_for_the_rlds_one_in_it(sets: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(sets / "rlds", parent / "rlds", ignore=shutil.ignore_patterns(".index*"))
    assert open_dataset(parent).description.name == "tiny_set"
    (parent / "notes").mkdir()
    assert open_dataset(parent).description.name == "tiny_set"
    shutil.copytree(sets / "npz", parent / "npz")
    with pytest.raises(UserError, match=r"holds several datasets: npz \(npz\), rlds \(rlds\).*data\.path"):
        open_dataset(parent)
    assert open_dataset(parent, "rlds").description.name == "tiny_set"
