"""``act-train-N.pth``: weights alone, as the guide loads them, and beside each a note that says where its state is.

A run of ``vla_ft`` keeps everything that a resume needs in ``checkpoints/step_...``. The note ties the weights to it by
two hashes: that of the weights, so that changed or foreign ones are not taken for a run's own, and that of the state's
manifest, because a run that went back gives the state's name to another one and keeps the old one under a new name.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from policy.act.network import statistics_state
from vla_ft.checkpoints import MANIFEST, STATISTICS
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.deployment.weights import TrainedWeights, build_plain, read_facts
from vla_ft.errors import UserError
from vla_ft.training.checkpointing import ABANDONED, disk_errors, replace_file, replace_text

FOLDER = "checkpoint"
_ASIDE = "abandoned-"


@dataclass(frozen=True)
class Note:
    """What is known about a file of weights."""

    epoch: int
    step: int
    state: str
    """Folder of the rest of the state, from the run folder."""
    manifest: str
    """SHA-256 of that state's manifest, which has the hashes of everything in it."""
    sha256: str
    """Of the weights."""

    @staticmethod
    def path(weights: Path) -> Path:
        """Where the note of a file of weights lies: ``act-train-N.json``."""
        return weights.with_suffix(".json")

    @classmethod
    def read(cls, weights: Path) -> Note | None:
        """The note of a file of weights; None when it has none that can be read."""
        try:
            return cls(**json.loads(cls.path(weights).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def weights_file(run: Path, epoch: int) -> Path:
    """``checkpoint/act-train-N.pth`` of a run folder."""
    return run / FOLDER / f"act-train-{epoch}.pth"


def export_weights(run: Path, state: Path, epoch: int, step: int) -> Path:
    """Write the weights of a checkpoint folder, with the statistics, as a bare state dict; the note comes last.

    Averaged weights where the run keeps an average, adapters merged. Raises UserError on a full disk.
    """
    config, description = read_facts(state)
    with TrainedWeights(state, build_plain(config, description, "meta"), config) as weights:
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in weights}
    tensors |= statistics_state(config.model, DatasetStatistics.load(state / STATISTICS))
    target = weights_file(run, epoch)
    unfinished = target.with_suffix(".unfinished")
    with disk_errors(f"{target.name}", target.parent, lambda: unfinished.unlink(missing_ok=True)):
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, unfinished)
        replace_file(unfinished, target)
        place = os.path.relpath(state, run)
        note = Note(epoch, step, place, _hash(state / MANIFEST), _hash(target))
        replace_text(Note.path(target), json.dumps(asdict(note), indent=1))
    return target


def find_state(weights: Path) -> Path:
    """The folder that continues a run at a file of weights. Raises UserError where it has none."""
    if not weights.is_file():
        there = sorted(p.name for p in weights.parent.glob("act-train-*.pth")) if weights.parent.is_dir() else []
        raise UserError(f"No checkpoint at {weights}. In that folder: {', '.join(there) or 'none'}.")
    alone = "To start a new run from these weights alone: --weights_only, with a new --output_dir."
    note = Note.read(weights)
    if note is None:
        raise UserError(
            f"{weights} has no {Note.path(weights).name} beside it: it holds weights, but no optimizer, generators or "
            f"place in the data. {alone}"
        )
    if _hash(weights) != note.sha256:
        raise UserError(
            f"{weights} is not the file that its run wrote: it was changed or replaced since. Resuming would leave "
            f"these weights out. {alone}"
        )
    run = weights.parent.parent
    state = _state_of(run, note)
    if state is None:
        raise UserError(
            f"Of epoch {note.epoch} only the weights are left: a run keeps the whole state of its last few checkpoints "
            f"(keep_states), and that of these weights, once {run / note.state}, is gone. {alone}"
        )
    return state


def set_aside(run: Path, step: int, state: Path | None) -> list[Path]:
    """Rename weights that a run which goes on at ``step`` will write again, and those of ``step`` of another ``state``.

    The state of weights that are set aside may have been renamed too: their note then names it as it is called now.
    """
    moved = []
    for path in sorted((run / FOLDER).glob("act-train-*.pth")):
        note = Note.read(path)
        if note is None or not (note.step > step or (note.step == step and not _is_of(note, state))):
            continue
        now, aside = _state_of(run, note), _free_name(path)
        known = note if now is None else replace(note, state=os.path.relpath(now, run))
        replace_text(
            Note.path(aside), json.dumps(asdict(known), indent=1)
        )  # first: weights without a note could not be continued
        os.replace(path, aside)
        Note.path(path).unlink()
        moved.append(aside)
    return moved


def _state_of(run: Path, note: Note) -> Path | None:
    """The folder with the manifest that a note knows: under its own name, or under one that a rewind gave it."""
    named = run / note.state
    step = named.name.removeprefix(ABANDONED).partition(".")[0]
    places = [named, named.with_name(step), *sorted(named.parent.glob(f"{ABANDONED}{step}*"))]
    return next((place for place in places if _is_of(note, place)), None)


def _is_of(note: Note, state: Path | None) -> bool:
    return state is not None and (state / MANIFEST).is_file() and _hash(state / MANIFEST) == note.manifest


def _free_name(path: Path) -> Path:
    names = (f"{_ASIDE}{path.name}", *(f"{_ASIDE}{number}-{path.name}" for number in range(2, 1000)))
    return next(aside for name in names if not (aside := path.with_name(name)).exists())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
