"""The documented script: what it calls, run in this process; whole runs of it are nightly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vla_ft.cli import main
from vla_ft.config import load_run_config

EXAMPLES = Path(__file__).parents[3] / "examples" / "open_pi_zero"
SCRIPT = EXAMPLES / "slurm" / "test_training_single_gpu_no_slurm.sh"
TINY = (
    "vision.config.image_size=28", "vision.config.hidden_size=16", "vision.config.intermediate_size=16",
    "vision.config.num_hidden_layers=1", "vision.config.num_attention_heads=2", "max_seq_len=12",
    "mixture.vlm.hidden_size=16", "mixture.vlm.intermediate_size=16", "mixture.action.hidden_size=16",
    "mixture.action.intermediate_size=16", "joint.config.num_hidden_layers=2", "joint.config.num_attention_heads=2",
    "joint.config.head_dim=8", "vocab_size=64", "image_token_index=63", "use_torch_compile=False", "use_bf16=False",
    "use_amp=False", "global_batch_size=4", "per_device_batch_size=2",
)  # fmt: skip


def calls_of(script: Path, words: list[str], folder: Path) -> list[list[str]]:
    """What the script hands to Python, call by call."""
    python, record = folder / "python", folder / "calls"
    python.write_text('#!/usr/bin/env bash\n(IFS=$\'\\x1f\'; echo "$*") >> "$0.calls"\n')
    python.chmod(0o755)
    record = python.with_name("python.calls")
    record.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(script), *words],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\x1f") for line in record.read_text().splitlines()]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"VLA_LOG_DIR": str(tmp_path / "logs"), "VLA_FT_DEVICE": "cpu", "VLA_DATA_DIR": "data"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    return tmp_path / "logs"


def test_it_goes_on_after_its_checkpoints_and_begins_anew(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original ends at its first checkpoint (spec of open-pi-zero, trap 2)."""
    recipe, train = calls_of(SCRIPT, [*TINY, "n_updates=3", "save_model_freq=2"], tmp_path)
    assert (recipe[:4], train[:3]) == (["-m", "vla_ft", "recipe", "from-open-pi-zero"], ["-m", "vla_ft", "train"])
    for call in (recipe, train):
        assert main(call[2:]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "Number of trained parameters (Action): 0.000B" in said and "(VLM)" not in said
    (run,) = (logs / "test").iterdir()
    assert sorted(path.name for path in run.glob("checkpoints/step_*")) == ["step_00000002", "step_00000003"]

    recipe, train = calls_of(SCRIPT, [*TINY, "train_vlm=True"], tmp_path)
    assert main(recipe[2:]) == 0
    second = load_run_config(train[3:])
    assert second.freeze == () and Path(second.output).parent == run.parent and Path(second.output) != run


@pytest.mark.nightly
def test_the_documented_script_as_a_user_runs_it(tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(EXAMPLES.parents[1]), "OMP_NUM_THREADS": "1"}
    variables |= {"VLA_LOG_DIR": str(tmp_path / "logs"), "VLA_FT_DEVICE": "cpu"}
    words = ["bash", str(SCRIPT), *TINY, "n_updates=18"]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "logs" / "test").iterdir()
    assert (run / "checkpoints/step_00000016").is_dir() and "finished step 18" in done.stdout
