from __future__ import annotations

import os

import pytest

from vla_ft.cli import main

SMALL = ("steps=8", "logging.every=1", "data.workers=0", "data.mock.episodes=4", "data.mock.image_size=[32,32]")


@pytest.mark.newcomer
def test_every_policy_trains_resumes_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    for _ in range(2):  # a second smoke run starts afresh
        assert main(["smoke", *SMALL]) == 0
        out = capsys.readouterr().out
        assert "act-mock: ok: loss" in out
        assert "continued from its checkpoint at 4" in out
    assert (tmp_path / "smoke" / "act-mock" / "loss.png").is_file()


def test_a_loss_that_rises_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    assert main(["smoke", *SMALL, "optimizer.lr=1.0"]) == 1
    assert "act-mock: FAILED, the loss did not fall" in capsys.readouterr().out


def test_a_folder_of_something_else_is_not_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path))
    mine = tmp_path / "smoke" / "act-mock" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    assert main(["smoke", *SMALL]) == 2
    assert mine.read_text() == "years of work"
    assert os.listdir(mine.parent) == ["thesis.tex"]
