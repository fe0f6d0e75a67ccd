"""Loss and action error on held-out windows, without touching the state of the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.policies.base import Batch
from vla_ft.training.assembly import Run
from vla_ft.training.engines import Engine

SAMPLES, STEPS = "samples", "steps"
"""What a number is a mean over: windows, or their real action steps."""
COUNT = {over: ("", over) for over in (SAMPLES, STEPS)}
"""Names of how many of each there were."""
Totals = dict[tuple[str, str], float]
"""Sums by (name, what its mean runs over); a loss may have a part of either kind."""


@torch.no_grad()
def validate(run: Run, batches: Iterable[Batch], engine: Engine, prefix: str = "validation") -> dict[str, float]:
    """Means over all windows of all processes, with the averaged weights when there are any. Collective.

    ``prefix`` comes before the names of the numbers: ``validation/action_l1`` is the mean absolute error of ``sample``
    in normalised units over the dimensions that the robot has, ``validation/action_mae`` in robot units; steps past an
    episode's end do not count.
    ``validation/action_within_X`` is the share of steps whose every dimension is nearer than the threshold X,
    normalised. None of these depends on how the windows are batched; the policy's own measures
    (``Model.sample_metrics``) are means over batches, a shorter one weighing less. Random numbers drawn here come from
    a fork with the run's seed: the run itself goes on as if validation had not happened. Raises UserError for a sample
    that cannot be read.
    """
    model, ema = engine.model, run.state.ema
    devices = [engine.device] if engine.device.type == "cuda" else []
    totals: Totals = {}
    mistakes: list[str] = []
    was_training = model.training
    try:
        model.eval()
        with engine.holding(ema.average) if ema else nullcontext(), torch.random.fork_rng(devices):
            torch.manual_seed(run.state.config.seed)
            for batch, counts in _in_step(_until_mistake(batches, mistakes), engine):
                sums = _sums(engine, run, batch)
                for name, value in sums.items() if counts else ():
                    totals[name] = totals.get(name, 0.0) + value
    finally:
        model.train(was_training)
        engine.settle()
    engine.agree(mistakes[0] if mistakes else None)
    return _means(totals, engine, prefix)


def _until_mistake(batches: Iterable[Batch], mistakes: list[str]) -> Iterator[Batch]:
    """Batches up to one that cannot be read, whose message is kept: the other processes must hear of it first."""
    try:
        yield from batches
    except UserError as mistake:
        mistakes.append(str(mistake))


def _in_step(batches: Iterator[Batch], engine: Engine) -> Iterator[tuple[Batch, bool]]:
    """Equally many batches on every process, and whether each counts: a forward on shards needs all processes.

    Who has none left goes through one of its own again, or through another's when it never had any.
    """
    spare: Batch | None = None
    while True:
        batch = next(batches, None)
        having = engine.gather(batch is not None)
        if not any(having):
            return
        first = having.index(True)
        if spare is None and not all(having):
            spare = engine.gather(batch if engine.rank == first else None)[first]
        spare = spare if batch is None else batch
        assert spare is not None
        yield engine.move(spare), batch is not None


def rows_within(error: Tensor, threshold: float) -> Tensor:
    """bool [...]: whether every dimension of an absolute error [..., A] is below the threshold."""
    return (error < threshold).all(-1)


def mean_of_dims(error: Tensor, dims: Tensor | None) -> Tensor:
    """Mean [B, H] of ``error`` [B, H, A] over the dimensions that a robot has, 1 in ``dims`` [B, A]; None: all."""
    if dims is None:
        return error.mean(-1)
    weights = dims[:, None].to(error.dtype)
    return (error * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def _sums(engine: Engine, run: Run, batch: Batch) -> Totals:
    processor, thresholds = run.processor, run.state.config.validation.thresholds
    result = engine.loss(batch)
    predicted = engine.sample(batch).float()
    real = batch["action_pad_mask"]
    of = batch.get("dataset")
    robot_error = np.abs(processor.unnormalize(predicted, of) - processor.unnormalize(batch["action"], of))
    samples, steps = float(len(real)), float(real.sum())
    of_steps = sum(factor * float(result.metrics[name]) for name, factor in result.per_step.items())
    sums = {("loss", STEPS): of_steps * steps, ("loss", SAMPLES): (float(result.loss) - of_steps) * samples}
    for name, value in result.metrics.items():
        over, count = (STEPS, steps) if name in result.per_step else (SAMPLES, samples)
        sums[name, over] = float(value) * count
    absolute = (predicted - batch["action"]).abs()
    error = absolute[real]
    sums["action_l1", STEPS] = float(mean_of_dims(absolute, batch.get("action_mask"))[real].sum())
    sums |= {(f"action_within_{limit:g}", STEPS): float(rows_within(error, limit).sum()) for limit in thresholds}
    sums["action_mae", STEPS] = float(robot_error.mean(-1)[real.cpu().numpy()].sum())
    sums |= {COUNT[SAMPLES]: samples, COUNT[STEPS]: steps}
    numbers = torch.zeros(len(real), dtype=torch.int64, device=real.device) if of is None else of
    datasets = list(processor.statistics.parts) or [run.reader.description.name]
    for name, value in engine.model.sample_metrics(predicted, batch).items():
        if value.ndim:
            sums |= _by_dataset(name, value, numbers, datasets)
        else:
            sums[name, SAMPLES] = float(value) * samples
    return sums


def _by_dataset(name: str, values: Tensor, numbers: Tensor, datasets: Sequence[str]) -> Totals:
    """Sums of a measure of each sample [B] by the dataset ``numbers`` int [B] that it comes from; 0 for all others."""
    sums: Totals = {}
    for number, dataset in enumerate(datasets):
        mine, over = numbers == number, f"samples of {dataset}"
        sums[f"{dataset}_{name}", over] = float(values[mine].sum())
        sums["", over] = float(mine.sum())
    return sums


def _means(totals: Totals, engine: Engine, prefix: str) -> dict[str, float]:
    names = engine.broadcast(sorted(totals))  # a process may hold no window at all; the main one always does
    sums = torch.tensor([totals.get(name, 0.0) for name in names], dtype=torch.float64, device=engine.device)
    whole = dict(zip(names, engine.sum(sums).tolist(), strict=True))
    counts = {over: whole.pop((name, over)) for name, over in names if not name}
    means: dict[str, float] = {}
    for (name, over), value in whole.items():
        if counts[over] == 0 and over not in COUNT:
            continue  # nothing of this dataset was held out
        means[f"{prefix}/{name}"] = means.get(f"{prefix}/{name}", 0.0) + value / max(1.0, counts[over])
    return means
