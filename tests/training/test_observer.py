from __future__ import annotations

from pathlib import Path

import pytest
from narrow_trunk import narrow_trunk
from rich.console import Console
from tiny_runs import TINY

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.training.observer import Beginning, Observer
from vla_ft.training.tracking import read_metrics
from vla_ft.training.trainer import train


class Notebook(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.beginnings: list[Beginning] = []
        self.lines: list[tuple[int, float, dict[str, float]]] = []
        self.checkpoints: list[tuple[int, Path, bool]] = []

    def started(self, beginning):
        self.beginnings.append(beginning)

    def logged(self, step, epoch, metrics):
        self.lines.append((step, epoch, dict(metrics)))

    def checkpointed(self, step, folder):
        self.checkpoints.append((step, folder, (folder / "manifest.json").is_file()))


def run(folder: Path, observer: Observer, *words: str) -> None:
    with narrow_trunk():
        config = load_run_config([*TINY, f"output={folder}", "device=cpu", *words])
        train(config, Console(quiet=True), observers=[observer])


def test_an_observer_hears_of_the_beginning_every_line_and_every_whole_checkpoint(tmp_path):
    notes = Notebook()
    run(tmp_path, notes, "steps=4")
    (beginning,) = notes.beginnings
    assert (beginning.step, beginning.checkpoint, beginning.folder) == (0, None, tmp_path)
    assert beginning.global_batch == 4 and beginning.processes == 1
    assert beginning.parameters > beginning.trainable > 0, "the trunk is frozen"
    assert beginning.statistics["action"].names == beginning.description.action_names
    assert [step for step, _, _ in notes.lines] == [1, 2, 3, 4]
    step, epoch, metrics = notes.lines[-1]
    assert epoch == pytest.approx(4 * 4 / beginning.training_samples)
    assert read_metrics(tmp_path)[-1] == {"step": step, **metrics}
    assert notes.checkpoints == [(n, tmp_path / "checkpoints" / f"step_{n:08d}", True) for n in (2, 4)]


def test_a_resumed_run_begins_at_its_checkpoint(tmp_path):
    run(tmp_path, Observer(), "steps=2")
    notes = Notebook()
    run(tmp_path, notes, "steps=4")
    (beginning,) = notes.beginnings
    assert (beginning.step, beginning.checkpoint) == (2, tmp_path / "checkpoints" / "step_00000002")
    assert any("steps 2 -> 4" in note for note in beginning.notes)


def test_a_mistake_of_an_observer_ends_the_run(tmp_path):
    class Careless(Observer):
        def logged(self, step, epoch, metrics):
            raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        run(tmp_path, Careless())
