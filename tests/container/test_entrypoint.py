"""The entry point's sentences, by running its text with other folders; no engine is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vla_ft.environment.table import REPOSITORY

PLAIN = "         0          0 4294967295\n"
ROOTLESS = "         0       1000          1\n         1     100000      65536\n"


def enter(folder: Path, uid_map: str = PLAIN, *, runs: bool = True) -> subprocess.CompletedProcess[str]:
    text = (REPOSITORY / "docker" / "entrypoint.sh").read_text()
    for name in ("cache", "runs"):
        assert f"/{name}" in text
        text = text.replace(f"/{name}", str(folder / name))
    assert "/proc/self/uid_map" in text
    (folder / "uid_map").write_text(uid_map)
    (folder / "cache").mkdir()
    if runs:
        (folder / "runs").mkdir()
    script = text.replace("/proc/self/uid_map", str(folder / "uid_map"))
    return subprocess.run(["sh", "-c", script, "sh", "echo", "a b"], capture_output=True, text=True)


@pytest.mark.parametrize("uid_map", [PLAIN, ROOTLESS])
def test_writable_folders_lead_to_the_command(tmp_path: Path, uid_map: str) -> None:
    done = enter(tmp_path, uid_map)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a b\n", "")


@pytest.mark.parametrize(("uid_map", "words"), [(PLAIN, "writes your user into .env"), (ROOTLESS, "maps users")])
def test_a_folder_that_cannot_be_written_is_told_with_what_helps(tmp_path: Path, uid_map: str, words: str) -> None:
    done = enter(tmp_path, uid_map, runs=False)
    assert done.returncode == 2 and done.stdout == ""
    assert f"{tmp_path}/runs cannot be written by user" in done.stderr and words in done.stderr
    assert "invoke use" in done.stderr
