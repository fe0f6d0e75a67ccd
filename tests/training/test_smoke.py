from __future__ import annotations

import os

import pytest

from vla_ft.checkpoints import CONFIGURATION
from vla_ft.cli import main

SMALL = ("steps=8", "logging.every=1", "data.workers=0", "data.mock.episodes=4", "data.mock.image_size=[32,32]")


@pytest.mark.newcomer
def test_every_policy_trains_resumes_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    for _ in range(2):  # a second smoke run starts afresh
        assert main(["smoke", *SMALL]) == 0
        out = capsys.readouterr().out
        assert "act-mock: ok: loss" in out and "pizero-mock: ok: loss" in out
        assert "continued from its checkpoint at 4" in out
    assert (tmp_path / "smoke" / "act-mock" / "loss.png").is_file()


def test_a_loss_that_rises_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    rising = [{"step": step, "train/loss": float(step)} for step in range(1, 9)]
    monkeypatch.setattr("vla_ft.training.smoke.read_metrics", lambda folder: rising)
    assert main(["smoke", *SMALL]) == 1
    assert "act-mock: FAILED, the loss did not fall" in capsys.readouterr().out


def test_a_folder_of_something_else_is_not_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    mine = tmp_path / "smoke" / "act-mock" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    assert main(["smoke", *SMALL]) == 2
    assert mine.read_text() == "years of work"
    assert os.listdir(mine.parent) == ["thesis.tex"]


def test_a_folder_of_another_user_is_told_with_its_owner(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    earlier = tmp_path / "smoke" / "act-mock"
    earlier.mkdir(parents=True)
    (earlier / CONFIGURATION).write_text("")
    access = os.access
    # Root may write everywhere, so that another's folder has to be made up.
    monkeypatch.setattr(os, "access", lambda path, mode: path != earlier and access(path, mode))
    assert main(["smoke", *SMALL]) == 2
    said = capsys.readouterr().err
    assert f"{earlier} belongs to user {earlier.stat().st_uid}" in said and "VLA_FT_RUNS" in said
    assert (earlier / CONFIGURATION).is_file()


def test_a_folder_that_cannot_be_removed_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    (tmp_path / "smoke").write_text("a file stands where the folder should be")
    assert main(["smoke", *SMALL]) == 2
    assert "cannot be made afresh: File exists" in capsys.readouterr().err


def test_a_folder_that_is_no_smoke_run_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    mine = tmp_path / "smoke" / "act-mock" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(["smoke", *SMALL]) == 2
    assert "is not a run of `smoke`" in capsys.readouterr().err and mine.read_text() == "mine"
