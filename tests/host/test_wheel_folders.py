"""Which folders of wheels are looked into, and in which order."""

from __future__ import annotations

import subprocess

import pytest

from vla_ft.errors import UserError
from vla_ft.host import wheel_folders as module
from vla_ft.host.wheel_folders import wheel_folders


def test_folders_given_come_before_those_of_pip(tmp_path, monkeypatch):
    given, variable, configured = (tmp_path / name for name in ("given", "variable", "configured"))
    for folder in (given, variable, configured):
        folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{variable} https://index.invalid/x /absent")
    listed = f":env:.find-links='{variable}'\nglobal.find-links='https://example.org {configured}'\n"
    answer = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: answer)
    assert wheel_folders([given]) == [given, variable, configured]
    assert wheel_folders() == [variable, configured]


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(UserError, match="/absent is no folder"):
        wheel_folders(["/absent"])
