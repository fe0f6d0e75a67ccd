"""One dataset and one finished run of the ACT guide's project, shared by its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from guide_project import demonstrations, train_act


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the shell that runs the tests decides what a command does."""
    for name in ("VLA_FT_DEVICE", "RANK", "WORLD_SIZE", "WANDB_MODE", "WANDB_SWEEP_ID", "ACT_DATASET_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes with two cameras."""
    return demonstrations(tmp_path_factory.mktemp("demos"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, demos: Path) -> Path:
    """A run of four epochs; tests read it only."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train_act(["--dataset_dir", demos, "--output_dir", folder, "--device", "cpu"]) == 0
    return folder
