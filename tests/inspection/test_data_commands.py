"""``vla-ft data inspect`` and ``check`` from outside."""

from __future__ import annotations

import errno
import json

import h5py
import numpy as np
import pytest
from any_format import LENGTHS, break_episode, write_set
from PIL import Image

from vla_ft.cli import main
from vla_ft.data.statistics import DatasetStatistics


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path / "runs"))


def test_inspect_prints_and_draws(tmp_path, capsys):
    path = write_set(tmp_path / "set", "aloha_hdf5")
    with h5py.File(path / "episode_3.hdf5", "r+") as file:
        file["action"][2, 0] = np.nan
    assert main(["data", "inspect", str(path), "episodes=2", "frames=4"]) == 0
    said = capsys.readouterr().out
    for words in ("3, 41 steps at 5 Hz", "11 to 16 steps", "top 32x40", "3 x follow the square", "1 of 4 episodes"):
        assert words in said
    folder = tmp_path / "runs" / "inspect" / "set"
    for name in ("contact_sheet.png", "action.png", "proprio.png"):
        assert str(folder / name) in said.replace("\n", "") or (folder / name).is_file()
        assert min(Image.open(folder / name).size) > 100
    assert DatasetStatistics.load(folder / "statistics.json")["action"].count == sum(LENGTHS[:3])


def test_inspect_of_a_mixture_draws_each(tmp_path, capsys):
    for name in ("left", "right"):
        write_set(tmp_path / "sets" / name, "npz")
    words = [
        "data.mix.left.weight=1",
        "data.mix.right.weight=2",
        f"output={tmp_path / 'out'}",
        "episodes=1",
        "frames=2",
    ]
    assert main(["data", "inspect", str(tmp_path / "sets"), *words]) == 0, capsys.readouterr()
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert drawn == {f"{n}_{w}.png" for n in ("left", "right") for w in ("action", "proprio", "contact_sheet")}


def test_check_says_where_and_how_bad(tmp_path, capsys):
    path = write_set(tmp_path / "set", "npz")
    assert main(["data", "check", str(path), "workers=1"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    break_episode(path, "npz", 2)
    report = tmp_path / "report.json"
    assert main(["data", "check", str(path), f"output={report}", "images=all", "workers=1"]) == 1
    said = capsys.readouterr().out
    assert "error: damaged (1)" in said and "episode_000002.npz" in said and "; 1 error\n" in said
    written = json.loads(report.read_text())
    assert (written["errors"], written["episodes"], written["left_out"]) == (1, 4, [])
    assert written["findings"][0]["episode"] == 2
    assert main(["data", "check", str(path), "on_damage=skip", "workers=1"]) == 0
    assert "1 damaged episode left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data", "chek", "x"], "Did you mean 'check'?"),
        (["data"], "needs a verb"),
        (["data", "check"], "takes one dataset"),
        (["data", "check", "nowhere"], "Dataset not found: no dataset at nowhere"),
        (["data", "inspect", "nowhere", "epsodes=2"], "Unknown key 'epsodes'. Did you mean 'episodes'?"),
        (["data", "check", "a", "output=no/such/folder.json"], "its folder does not exist"),
    ],
)
def test_mistakes_are_sentences(capsys, words, sentence):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_findings_are_said_before_they_are_written(tmp_path, capsys, monkeypatch):
    path = write_set(tmp_path / "set", "npz")
    break_episode(path, "npz", 2)
    report = tmp_path / "report.json"
    report.write_text("{}")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert main(["data", "check", str(path), f"output={report}", "workers=0"]) == 2
    said = capsys.readouterr()
    assert "episode_000002.npz" in said.out
    assert f"Cannot write {report}: " in said.err and "No space left" in said.err
    assert report.read_text() == "{}", "what was there is whole"
    assert [p.name for p in tmp_path.iterdir() if "unfinished" in p.name] == []
    assert main(["data", "check", str(path), f"output={tmp_path}", "workers=0"]) == 2
    assert "is a folder" in capsys.readouterr().err
