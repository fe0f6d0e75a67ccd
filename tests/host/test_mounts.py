"""Paths of the caller, as a container knows them."""

from __future__ import annotations

import pytest

from vla_ft.errors import UserError
from vla_ft.host.mounts import host_folders, inside


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.delenv("VLA_FT_DATA", raising=False)
    monkeypatch.delenv("VLA_FT_RUNS", raising=False)
    (tmp_path / "datasets" / "cube").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return host_folders(tmp_path, {})


def test_paths_in_mounted_folders_are_renamed(folders, tmp_path):
    words = ["recipe=act", "data.path=datasets/cube", f"output={tmp_path}/runs/new", "steps=3"]
    assert inside(words, folders) == ["recipe=act", "data.path=/data/cube", "output=/runs/new", "steps=3"]


def test_names_and_paths_inside_are_left_alone(folders):
    words = ["data.path=mock", "data.path=/data/cube", "resume=auto", "output=/runs/x"]
    assert inside(words, folders) == words


def test_names_with_dots_are_kept_whole(folders, tmp_path):
    words = ["output=runs/act.v1.", "output=runs", "data.path=datasets/.hidden"]
    assert inside(words, folders) == ["output=/runs/act.v1.", "output=/runs", "data.path=/data/.hidden"]


@pytest.mark.parametrize(
    "place", ["results/x", "/tmp/x", "../runs/x", "x", "datasets/x", "/data/x", "/runs/../tmp/x", "elsewhere"]
)
def test_an_output_that_would_vanish_with_the_container_is_refused(folders, place):
    with pytest.raises(UserError, match=r"output=.* outlives it\. Put it under .*/runs, point VLA_FT_RUNS"):
        inside([f"output={place}"], folders)


def test_a_folder_that_is_not_mounted_is_told(folders):
    with pytest.raises(
        UserError, match=r"data\.path=elsewhere is not in a folder that the container sees.*or add --local"
    ):
        inside(["data.path=elsewhere"], folders)


def test_variables_move_the_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_FT_DATA", str(tmp_path / "lab"))
    monkeypatch.delenv("VLA_FT_RUNS", raising=False)
    assert host_folders(tmp_path, {"VLA_FT_DATA": "ignored", "VLA_FT_RUNS": "out"}) == {
        tmp_path / "lab": "/data",
        tmp_path / "out": "/runs",
    }
