"""What a run tells whoever watches it: an interface for wrappers that print or keep things in a form of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.policies.registry import load_policy
from vla_ft.training.assembly import Run
from vla_ft.training.collective import on_main
from vla_ft.training.engines import Engine


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A run before its first update."""

    folder: Path
    checkpoint: Path | None
    """Where it continues; None for a fresh start."""
    step: int
    notes: tuple[str, ...]
    """What else a resume changed, in words."""
    parameters: int
    """Of the whole model, parts included that are not held because their features are cached; without adapters."""
    trainable: int
    training_samples: int
    """Windows of an epoch."""
    held_out_samples: int
    global_batch: int
    processes: int
    device: str
    weights: str
    """Where the weights come from, in words."""
    description: DatasetDescription
    statistics: DatasetStatistics


class Observer:
    """Called on the main process alone, between updates; a UserError from it ends every process of the run.

    Every method does nothing unless it is overridden. None may change the run.
    """

    def started(self, beginning: Beginning) -> None:
        """Everything is built and, when the run continues a checkpoint, restored."""

    def worded(self, said: str) -> str:
        """A warning of the run, in words that this one's users can type."""
        return said

    def logged(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Scalars were written after ``step`` updates, ``epoch`` epochs (see ``logging.updates_per_epoch``)."""

    def checkpointed(self, step: int, folder: Path) -> None:
        """A whole checkpoint of ``step`` lies in ``folder``."""

    def artifact(self, step: int, folder: Path) -> Sequence[Path] | None:
        """The files that W&B keeps of this checkpoint where it keeps any; None for the whole ``folder``. Asked after
        ``checkpointed``; the files may be renamed or replaced later, but not written to."""
        return None


class Observers:
    """Several observers of one run. What it tells is collective, so that a mistake on one process ends all."""

    def __init__(self, observers: Sequence[Observer], engine: Engine) -> None:
        self._observers, self._engine = tuple(observers), engine

    def started(self, run: Run, checkpoint: Path | None, notes: Sequence[str]) -> None:
        """Tell of the beginning."""

        def tell() -> None:
            beginning = beginning_of(run, self._engine, checkpoint, notes)
            for one in self._observers:
                one.started(beginning)

        self._on_main(tell)

    def worded(self, said: str) -> str:
        """A warning, as the observers have it said. Not collective."""
        for one in self._observers:
            said = one.worded(said)
        return said

    def logged(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Tell of scalars."""

        def tell() -> None:
            for one in self._observers:
                one.logged(step, epoch, metrics)

        self._on_main(tell)

    def checkpointed(self, step: int, folder: Path) -> None:
        """Tell of a checkpoint."""

        def tell() -> None:
            for one in self._observers:
                one.checkpointed(step, folder)

        self._on_main(tell)

    def artifact(self, step: int, folder: Path) -> Sequence[Path] | None:
        """The first answer other than None. Not collective: for the main process."""
        answers = (one.artifact(step, folder) for one in self._observers)
        return next((files for files in answers if files is not None), None)

    def _on_main(self, tell: Callable[[], None]) -> None:
        if self._observers:  # a run without any communicates no more than before
            on_main(self._engine, tell)


def beginning_of(run: Run, engine: Engine, checkpoint: Path | None, notes: Sequence[str]) -> Beginning:
    """The facts of an assembled run. Needs no communication."""
    config = run.state.config
    with torch.device("meta"):  # the engine's own model may hold shards, adapters, or lack what is cached
        model = load_policy(config.policy).build_model(config.model, run.state.description)
    return Beginning(
        folder=Path(config.output),
        checkpoint=checkpoint,
        step=run.state.step,
        notes=tuple(notes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(engine.pieces[name].numel for name in engine.trained),
        training_samples=len(run.places),
        held_out_samples=len(run.validation_windows),
        global_batch=run.global_batch,
        processes=engine.world_size,
        device=engine.device.type,
        weights=run.weights,
        description=run.state.description,
        statistics=run.state.statistics,
    )
