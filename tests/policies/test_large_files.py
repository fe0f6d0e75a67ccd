"""A published checkpoint of 30.5 GB is loaded with less than 2 GiB of anonymous memory (the measure of issue 3)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import large_files
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["safetensors", "shards", "torch"])
def test_thirty_gigabytes_in_two(tmp_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, large_files.__file__, kind, str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["file_bytes"] > 30.5e9 and result["disk_bytes"] < 50e6
    assert result["parameters"] == large_files.PARAMETERS and result["still_on_meta"] == 0
    assert 0 < result["peak_anonymous_bytes"] < 2 * large_files.GIB, result
