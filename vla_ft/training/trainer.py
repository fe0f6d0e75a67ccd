"""The one training loop, for every policy, dataset and engine."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_ft.checkpoints import CONFIGURATION, step_folder, write_json
from vla_ft.config import RunConfig
from vla_ft.errors import UserError
from vla_ft.training.assembly import (
    Run,
    assemble,
    held_out_loader,
    nothing_held_out,
    training_batches,
    training_probe,
)
from vla_ft.training.banner import print_banner
from vla_ft.training.checkpointing import CheckpointStore, disk_errors, sole_writer
from vla_ft.training.collective import on_all, on_main
from vla_ft.training.engines import Engine, build_engine
from vla_ft.training.environment_record import environment_record
from vla_ft.training.known_errors import explained
from vla_ft.training.monitoring import VALIDATION_LOSS, GpuMeter, Pace, TimedBatches, common_names
from vla_ft.training.observer import Observer, Observers
from vla_ft.training.optimizers import schedule_factor
from vla_ft.training.progress import ProgressLine, memory_gib
from vla_ft.training.randomness import use_deterministic_kernels
from vla_ft.training.resilience import Interruption
from vla_ft.training.resume import find_start, refuse_other_run
from vla_ft.training.state import load_checkpoint, restore_generators, save_checkpoint
from vla_ft.training.symptoms import Symptoms
from vla_ft.training.tracking import Tracker, read_metrics
from vla_ft.training.update import update
from vla_ft.training.validation import validate
from vla_ft.training.wandb_run import note, require_login

DATA = "data.json"
"""File of a run folder: how many episodes took part, and which were left out and why."""


@dataclass(frozen=True)
class Report:
    """How a run ended. ``interrupted`` names the signal that stopped it, after a checkpoint, if one did; ``damaged``
    counts the episodes that were left out."""

    folder: Path
    step: int
    interrupted: str | None
    metrics: dict[str, float]
    damaged: int = 0


Losses = tuple[dict[str, float], bool]
"""What ``update`` returns."""
Watch = Callable[[Run, Engine, Callable[[], Losses]], Losses]
"""Calls what it is given, once, and may look at it: every update of a run goes through it."""


def train(
    config: RunConfig,
    console: Console | None = None,
    watch: Watch | None = None,
    observers: Sequence[Observer] = (),
) -> Report:
    """Train to ``config.steps``, continuing the run in ``config.output`` when there is one. Raises UserError.

    ``observers``: as many on every process; those of the main one are called.
    """
    if config.deterministic:
        use_deterministic_kernels()
    engine = build_engine(config)
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    store = CheckpointStore(Path(config.output) / "checkpoints", config.checkpoint.keep_last)
    with explained(config), ExitStack() as stack:
        stack.callback(engine.close)
        on_main(engine, lambda: require_login(config.logging))  # before anything large is read
        _hold_folder(Path(config.output), engine, stack)
        # One process decides, and hashes: the others' view of the disk may be older.
        start = on_main(engine, lambda: find_start(config, store))
        run = assemble(config, engine, start, console.print)
        told = Observers(observers, engine)
        notes: list[str] = []
        generators: dict[str, Any] = {}
        if start is not None:
            source, place, damaged = run.state.statistics.source_hash, engine.device.type, run.damaged.numbers
            notes = on_all(engine, lambda: refuse_other_run(start, config, source, engine.world_size, place, damaged))
            generators, inexact = load_checkpoint(start, run.state, engine)
            notes += inexact
        if engine.is_main:
            notes += [f"{path.name} set aside" for path in store.rewind(start)] if start else []
            _record(run, engine)
            print_banner(console, run, engine, [_beginning(run, start), *notes])
            for said in (note(config.logging), nothing_held_out(config, run.split)):
                if said is not None:
                    _warn(told.worded(said))
        told.started(run, start, notes)
        return _loop(run, store, generators, engine, console, watch or (lambda run, engine, step: step()), told)


def _hold_folder(folder: Path, engine: Engine, stack: ExitStack) -> None:
    """Make this run the only writer of its folder until ``stack`` ends. Collective."""
    error = None
    if engine.is_main:
        try:
            stack.enter_context(sole_writer(folder))
        except UserError as mistake:
            error = str(mistake)
    engine.agree(error)
    # Each process writes its own part of a checkpoint here.
    seen = engine.gather(folder.is_dir())
    on_main(engine, lambda: _refuse_unseen(folder, seen))


def _refuse_unseen(folder: Path, seen: list[bool]) -> None:
    """Raise UserError when a process does not see the run folder that the main one has just made."""
    if not all(seen):
        raise UserError(
            f"Process {seen.index(False)} of {len(seen)} does not see {folder}. Processes on several machines share "
            "the run folder: set output= to a disk that all of them see."
        )


def _record(run: Run, engine: Engine) -> None:
    folder = Path(run.state.config.output)
    with disk_errors("The run's records", folder):
        write_json(folder / CONFIGURATION, run.state.config.to_dict())
        write_json(folder / "environment.json", environment_record(engine))
        write_json(folder / DATA, _data_record(run))


def _data_record(run: Run) -> dict[str, Any]:
    return {
        "training_episodes": len(run.split.training),
        "held_out_episodes": len(run.split.validation),
        "dropped_without_instruction": run.dropped.unlabeled,
        "left_out_episodes": list(run.dropped.left_out),
        "damaged_episodes": [dataclasses.asdict(one) for one in run.damaged.episodes],
    }


def _beginning(run: Run, start: Path | None) -> str:
    if start is None:
        return "fresh"
    done = ", which is all that is asked for" if run.state.step >= run.state.config.steps else ""
    return f"step {run.state.step} of {start}{done}"


def _loop(
    run: Run,
    store: CheckpointStore,
    generators: dict[str, Any],
    engine: Engine,
    console: Console,
    watch: Watch,
    told: Observers,
) -> Report:
    state, config = run.state, run.state.config
    batches = TimedBatches(training_batches(run, engine))
    loaders = {"validation": held_out_loader(run, engine), "training_sample": training_probe(run, engine)}
    measured = {name: loader for name, loader in loaders.items() if loader is not None}
    pace = Pace(batches)
    restore_generators(generators, engine.device)  # only now: making the loader's iterator may draw random numbers
    scalars: dict[str, float] = {}
    stop = False
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        line = stack.enter_context(ProgressLine(console, config.steps, state.step, run.global_batch, engine.is_main))
        tracker = stack.enter_context(_tracker(run)) if engine.is_main else None
        gpu = stack.enter_context(GpuMeter(engine.device))
        symptoms = _symptoms(run, engine, told) if engine.is_main else None
        while state.step < config.steps and not stop:
            step = partial(update, run, batches, engine, interruption.requested is not None)
            with pace.update():
                losses, stop = watch(run, engine, step)
            due = _due(state.step, config, stop)
            line.update(state.step, losses["loss"], due["log"])
            scalars = _scalars(run, losses, line, pace) | gpu.read() if due["log"] else {}
            for name, windows in measured.items() if due["validation"] else ():
                scalars |= validate(run, windows, engine, name)
            if "validation/loss" in scalars:
                scalars[VALIDATION_LOSS] = scalars["validation/loss"]
            if tracker is not None and scalars:
                tracker.write(state.step, scalars)
            if symptoms is not None:
                symptoms.look({"step": state.step, **scalars})
            if scalars:
                told.logged(state.step, state.step / _updates_per_epoch(run), scalars)
            if due["checkpoint"]:
                save_checkpoint(store, state, engine)
                place = store.folder / step_folder(state.step)
                told.checkpointed(state.step, place)
                if tracker is not None:
                    tracker.checkpointed(state.step, place, told.artifact(state.step, place))
    signal = (interruption.requested or "a signal to another process") if stop else None
    return Report(Path(config.output), state.step, signal, scalars, len(run.damaged.episodes))


def _tracker(run: Run) -> Tracker:
    config = run.state.config
    return Tracker(Path(config.output), config.logging, config.to_dict(), run.state.step)


def _symptoms(run: Run, engine: Engine, told: Observers) -> Symptoms:
    """The judge of this run, which remembers what was logged before."""
    config = run.state.config
    found = Symptoms(config, list(engine.model.parameter_groups()), lambda said: _warn(told.worded(said)))
    found.remember(read_metrics(Path(config.output)))
    return found


def _warn(said: str) -> None:
    """To stderr: whoever gave a console of their own for the banner still sees what is wrong."""
    print(f"vla-ft: {said}", file=sys.stderr, flush=True)


def _due(step: int, config: RunConfig, stop: bool) -> dict[str, bool]:
    """What follows the update that led to ``step``. The last step, and one that stops early, leave a checkpoint."""
    last = step == config.steps
    return {
        "log": last or step % config.logging.every == 0,
        # Whoever asks a run to stop gives it time for a checkpoint, not for more.
        "validation": not (stop and not last) and (last or step % config.validation.every == 0),
        "checkpoint": last or stop or step % config.checkpoint.every == 0,
    }


def _updates_per_epoch(run: Run) -> float:
    """Updates in what is logged as an epoch."""
    return run.state.config.logging.updates_per_epoch or len(run.places) / run.global_batch


def _scalars(run: Run, losses: dict[str, float], line: ProgressLine, pace: Pace) -> dict[str, float]:
    state, config = run.state, run.state.config
    updates = _updates_per_epoch(run)
    epoch = state.step / updates
    return {f"train/{name}": value for name, value in losses.items()} | {
        "train/epoch": epoch,
        "train/samples_per_second": line.samples_per_second,
        "train/memory_gib": memory_gib(),
        **common_names(losses),
        "lr": config.optimizer.lr * schedule_factor(config.schedule, state.step - 1, config.steps),
        "epoch": epoch,
        **pace.read(updates),
    }
