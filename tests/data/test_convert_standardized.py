"""``data convert standardize=``: what is written is what a mix of the raw set would train on; nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vla_ft.cli import main
from vla_ft.data.convert import RECORD
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.formats.rlds_writer import RldsWriter
from vla_ft.data.opening import MixEntry, open_part
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.standardize.base import ACTION_NAMES, ACTION_UNITS, GRIPPER, POSE_EULER
from vla_ft.data.standardize.reader import StandardizedReader
from vla_ft.errors import UserError

SIZE, STEPS = (12, 16), 10
RAW = DatasetDescription(
    name="raw",
    cameras={"0": SIZE, "1": SIZE},
    action_names=tuple("abcdefg"),
    action_units=("",) * 7,
    proprio_names=tuple("abcdefg"),
    proprio_units=("",) * 7,
    action_kind="end_effector",
    action_mode="delta",
    gripper="",
    fps=5.0,
)
KEYS = ("action", "proprio", "image_primary", "image_secondary")


@pytest.fixture
def bridge(tmp_path: Path) -> Path:
    """Three episodes in Bridge's raw columns; the last one is so short that standardising leaves nothing of it."""
    rng = np.random.default_rng(0)
    writer = RldsWriter(tmp_path / "bridge", RAW, images="png")
    for length, instruction in ((STEPS, "lift"), (STEPS, ""), (2, "push")):
        states = np.cumsum(rng.normal(size=(length, 7)), axis=0).astype(np.float32)
        writer.add(
            (
                {
                    "action": np.append(np.zeros(6), step < length // 2).astype(np.float32),
                    "proprio": states[step],
                    **{f"image_{c}": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for c in RAW.cameras},
                }
                for step in range(length)
            ),
            instruction,
        )
    return writer.finish()


def converted(source: Path, target: Path, *words: str) -> int:
    return main(["data", "convert", f"from={source}", f"to={target}", "on_damage=skip", *words])


@pytest.mark.parametrize("format", ["npz", "rlds", "lerobot"])
def test_the_standard_form_is_written(tmp_path: Path, bridge: Path, capsys: pytest.CaptureFixture, format: str) -> None:
    exact = {"lerobot": ["images=image"]}.get(format, [])
    out = tmp_path / "out"
    words = (f"format={format}", "standardize=bridge_orig", "instruction=tidy up", *exact)
    assert converted(bridge, out, *words) == 0
    said = capsys.readouterr().out
    assert "2 episodes, 1 damaged ones left out" in said
    assert "reward: it is not read from the source" in said
    mixed = open_part(bridge, "bridge_orig", MixEntry(), None, None, {})
    reader = open_dataset(out)
    assert reader.lengths.tolist() == [STEPS - 2] * 2
    assert [reader.instruction(e) for e in (0, 1)] == ["lift", "tidy up"]
    for episode in (0, 1):
        mine, theirs = (r.read(episode, np.arange(STEPS - 2), KEYS) for r in (reader, mixed))
        assert all(np.array_equal(mine[key], theirs[key]) for key in KEYS)
        assert mine["action"].shape == (STEPS - 2, 7)
    assert reader.description.action_names == ACTION_NAMES
    assert reader.description.proprio_names == POSE_EULER
    if format != "lerobot":  # which has no place for these
        assert (reader.description.action_units, reader.description.gripper) == (ACTION_UNITS, GRIPPER)
    assert json.loads((out / RECORD).read_text())["standardize"] == "bridge_orig"


def test_roles_sizes_and_rate_can_be_said(tmp_path: Path, bridge: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("format=npz", "standardize=bridge_dataset", "cameras=[primary]", "image_size=[8,8]", "fps=4")
    assert converted(bridge, tmp_path / "out", *words) == 0
    assert "image_1: it is not read from the source" in capsys.readouterr().out
    about = open_dataset(tmp_path / "out").description
    assert (dict(about.cameras), about.fps) == ({"primary": (8, 8)}, 4)


def test_what_does_not_fit_is_refused(tmp_path: Path, bridge: Path, capsys: pytest.CaptureFixture) -> None:
    assert converted(bridge, tmp_path / "npz", "format=npz") == 0
    for source, words, message in (
        (bridge, ["standardize=brigde_orig"], "Unknown standardisation 'brigde_orig'. Did you mean 'bridge_orig'?"),
        (bridge, ["standardize=bridge_orig", "action=[action]"], "standardize=bridge_orig decides what action is"),
        (bridge, ["standardize=bridge_orig", "action_mode=absolute"], "decides what action_mode is"),
        (bridge, ["standardize=bridge_orig", "cameras=[wrist]"], "has no wrist camera"),
        (tmp_path / "npz", ["standardize=bridge_orig", "from_format=npz"], "Unknown option of format npz 'action'"),
    ):
        capsys.readouterr()
        assert converted(source, tmp_path / "x", "format=npz", *words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_the_standard_form_is_not_standardised_again(tmp_path: Path, bridge: Path) -> None:
    assert converted(bridge, tmp_path / "out", "format=rlds", "standardize=bridge_dataset") == 0
    with pytest.raises(UserError, match=r"is standardised already. Read it as it is stored, with standardize=none"):
        open_part(tmp_path / "out", "bridge_dataset", MixEntry(), None, None, {})
    plain = open_part(tmp_path / "out", "bridge_dataset", MixEntry(standardize="none"), None, None, {})
    assert plain.description.gripper == GRIPPER
    alone = open_part(tmp_path / "out", "custom_finetuning", MixEntry(), None, None, {})
    assert isinstance(alone.inner, StandardizedReader)  # type: ignore[attr-defined]
    values = alone.read(0, np.arange(5), ("action",))["action"]
    assert np.array_equal(values, plain.read(0, np.arange(5), ("action",))["action"]), "CogACT's form of one's own"


def test_another_standardisation_does_not_go_on_in_the_same_folder(tmp_path: Path, bridge: Path) -> None:
    assert converted(bridge, tmp_path / "out", "format=npz", "standardize=bridge_dataset") == 0
    assert converted(bridge, tmp_path / "out", "format=npz", "standardize=bridge_dataset") == 0
    assert converted(bridge, tmp_path / "out", "format=npz", "standardize=bridge_orig") == 2
