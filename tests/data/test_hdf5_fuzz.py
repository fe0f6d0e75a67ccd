"""Changed HDF5 files: a named error or the right numbers; never a crash or another exception, nor
a hang of ours.

50 cases on every run, 1,000 with ``-m nightly``. Pictures are not compared: HDF5 keeps no sum of them
(``docs/data.md``).
"""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import hdf5_mutations
import pytest
from fuzz_counts import record_counts

from vla_ft.data.formats.aloha_writer import AlohaWriter

CASES = [pytest.param(50, id="50"), pytest.param(1000, id="1000", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("count", CASES)
@pytest.mark.parametrize("images", AlohaWriter.IMAGES)
def test_hdf5_files(tmp_path: Path, count: int, images: str) -> None:
    """JPEG rows lie in HDF5's heap of variable lengths, and libhdf5 2.0.0 walks some damaged heaps for ever."""
    seen: collections.Counter[str] = collections.Counter()
    hung, first = 0, 0
    while first < count:
        verdicts, hang = run_cases(tmp_path / f"from_{first}", images, first, count - first)
        wrong = [f"case {v['case']}: {v['verdict']}" for v in verdicts if v["verdict"].startswith("wrong")]
        assert not wrong, "\n".join(wrong)
        seen.update(v["verdict"] for v in verdicts)
        hung += hang
        first += len(verdicts) + hang
    assert hung <= (count // 50 if images == "jpeg" else 0)
    record_counts(f"hdf5 {images}", dict(seen) | ({"hung inside libhdf5": hung} if hung else {}))
    assert len(seen) == 3


def run_cases(folder: Path, images: str, first: int, count: int) -> tuple[list[dict[str, Any]], bool]:
    """Verdicts up to the end, or to a case that hung, which is said too. A crash fails the test."""
    script = Path(hdf5_mutations.__file__)
    support = Path(__file__).resolve().parent.parent / "support"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), str(support), *sys.path])}
    process = subprocess.run(
        [sys.executable, str(script), str(folder), images, str(first), str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120 + 5 * count,
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    hang = process.returncode == -signal.SIGALRM
    assert hang or process.returncode == 0, f"{lines[-1:]}: exit {process.returncode}\n{process.stderr[-3000:]}"
    verdicts = [line for line in lines if "verdict" in line]
    assert len(verdicts) == count or hang
    return verdicts, hang
