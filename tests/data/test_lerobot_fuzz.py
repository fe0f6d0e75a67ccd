"""Damaged LeRobot datasets: a named error or the data as written; never a crash, a hang or other numbers."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import lerobot_mutations
import pytest
from fuzz_counts import record_counts

SECONDS_A_CASE = 5


def run_cases(folder: Path, first: int, count: int) -> collections.Counter[str]:
    """Verdicts of cases in a process of their own. Fails on a crash, a hang, a traceback or wrong data."""
    lerobot_mutations.write_kinds(folder)
    script = Path(lerobot_mutations.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path])}
    process = subprocess.run(
        [sys.executable, str(script), str(folder), str(first), str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 + SECONDS_A_CASE * count,
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, f"{lines[-1] if lines else ''}: exit {process.returncode}\n{process.stderr[-3000:]}"
    verdicts = [line for line in lines if "verdict" in line]
    harms = {line["case"]: f"{line['kind']}: {line['harm']}" for line in lines if "harm" in line}
    assert len(verdicts) == count
    wrong = [f"{harms[v['case']]}: {v['message']}" for v in verdicts if v["verdict"] == "wrong"]
    assert not wrong, "\n".join(wrong)
    return collections.Counter(v["verdict"] for v in verdicts)


def test_fifty_damaged_datasets(tmp_path: Path) -> None:
    seen = run_cases(tmp_path, 0, 50)
    record_counts("lerobot", dict(seen))
    assert seen["named"] > 20
    assert seen["right"] > 0


@pytest.mark.nightly
def test_a_thousand_damaged_datasets(tmp_path: Path) -> None:
    seen = run_cases(tmp_path, 50, 1000)
    record_counts("lerobot", dict(seen))
    assert seen["named"] > 400
