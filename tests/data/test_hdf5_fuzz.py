"""Changed HDF5 files: a named error or the right numbers; never a hang, a crash or another exception.

50 cases on every run, 1,000 with ``-m nightly``. Pictures are not compared: HDF5 keeps no sum of them
(``docs/data.md``).
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import hdf5_mutations
import pytest
from fuzz_counts import record_counts

from vla_ft.data.formats.aloha_writer import AlohaWriter

CASES = [pytest.param(50, id="50"), pytest.param(1000, id="1000", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("count", CASES)
@pytest.mark.parametrize("images", AlohaWriter.IMAGES)
def test_hdf5_files(tmp_path: Path, count: int, images: str) -> None:
    script = Path(hdf5_mutations.__file__)
    support = Path(__file__).resolve().parent.parent / "support"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), str(support), *sys.path])}
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "set"), images, "0", str(count)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120 + 5 * count,
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, f"{lines[-1:]}: exit {process.returncode}\n{process.stderr[-3000:]}"
    verdicts = [line for line in lines if "verdict" in line]
    assert len(verdicts) == count
    wrong = [f"case {v['case']}: {v['verdict']}" for v in verdicts if v["verdict"].startswith("wrong")]
    assert not wrong, "\n".join(wrong)
    seen = collections.Counter(v["verdict"] for v in verdicts)
    record_counts(f"hdf5 {images}", dict(seen))
    assert len(seen) == 3
