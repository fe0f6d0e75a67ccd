"""What a newcomer does: a fresh clone, the README's first command, then a few tests. Nothing is installed by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST = "pip install -e . && invoke smoke"
SECOND = "pip install -e . && invoke test"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: there is nothing to clone again")
@pytest.mark.skipif("VLA_FT_NEWCOMER" in os.environ, reason="already inside the newcomer's test run")
def test_a_fresh_clone_runs_the_first_command_and_the_marked_tests(tmp_path):
    clone = tmp_path / "vla_ft"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    readme = (clone / "README.md").read_text()
    commands = re.findall(r"^    (pip install .*?)\s+#", readme, re.MULTILINE)
    assert commands == [FIRST, SECOND]

    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "tools")], check=True)
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHON", "VLA_FT_", "PYTEST"))
    }
    environment |= {"PATH": f"{tmp_path / 'tools' / 'bin'}:{os.environ['PATH']}", "VLA_FT_NEWCOMER": "1"}

    def run(command: str) -> str:
        done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    out = run(commands[0])
    assert re.search(r"^act-mock: ok: loss [\d.]+ -> [\d.]+ in 60 steps", out, re.MULTILINE), out[-2000:]
    assert (clone / "runs" / "smoke" / "act-mock" / "checkpoints" / "latest").is_file()

    out = run(f"{commands[1]} --args '-m newcomer'")
    passed = int(re.search(r"(\d+) passed", out)[1])
    assert passed >= 10, out[-2000:]
    assert "failed" not in out.splitlines()[-1]

    assert subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout == ""
