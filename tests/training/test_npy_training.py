"""ACT trains on the guide's npy folder as its users have it: pickled dicts, two cameras; and as we write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import TINY, metrics

from vla_ft.cli import main
from vla_ft.data.formats.registry import open_dataset

RUN = (
    *TINY, "steps=16", "device=cpu", "model.chunk_size=10", "batch.per_device=4", "batch.accumulation=1",
    "model.dropout=0.0", "optimizer.lr=0.003", "ema=null", "schedule.name=constant", "validation.every=16",
    "checkpoint.every=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mock in this format, written by the command that the documents name."""
    folder = tmp_path_factory.mktemp("mock")
    words = ["image_size=[32,32]", "episodes=4", "min_length=3", "max_length=12"]
    assert main(["data", "mock", "--format", "npy", f"output={folder}", *words]) == 0
    return next(folder.glob("mock_*"))


@pytest.fixture(scope="module")
def pickled(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same numbers as an array of dicts, as the guide's readers have them."""
    folder = tmp_path_factory.mktemp("pickled")
    records = np.load(ours / "observations.npy")
    steps = np.empty(len(records), dtype=object)
    for number, record in enumerate(records):
        steps[number] = {name: record[name].copy() for name in records.dtype.names}
    np.save(folder / "observations.npy", steps, allow_pickle=True)
    for name in ("actions.npy", "rollout_length.npy"):
        np.save(folder / name, np.load(ours / name))
    return folder


def train(output: Path, *words: str) -> list[float]:
    """Losses of a run, step by step."""
    assert main(["train", *RUN, f"output={output}", *words]) == 0
    return [line["train/loss"] for line in metrics(output) if "train/loss" in line]


def test_the_loss_falls_and_is_the_same_from_pickles(
    tmp_path: Path, ours: Path, pickled: Path, capsys: pytest.CaptureFixture
) -> None:
    assert list(open_dataset(ours).description.cameras) == ["left", "right"], "the guide's"
    assert (open_dataset(ours).lengths < 10).sum() == 3, "episodes shorter than the chunk take part"
    losses = train(tmp_path / "ours", f"data.path={ours}")
    assert "is pickled" not in capsys.readouterr().out
    assert len(losses) == 16
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])

    assert main(["train", *RUN, f"output={tmp_path / 'refused'}", f"data.path={pickled}"]) == 2
    assert "Say data.allow_pickle=true" in capsys.readouterr().err
    words = [f"data.path={pickled}", "data.allow_pickle=true", "steps=3", "validation.every=3", "checkpoint.every=3"]
    assert train(tmp_path / "pickled", *words) == losses[:3]
    assert "observations.npy is pickled: all of its" in " ".join(capsys.readouterr().out.replace("│", " ").split())
