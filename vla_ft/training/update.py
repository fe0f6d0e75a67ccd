"""One optimizer update: forward and backward over the micro-batches, clipping, step, average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.policies.base import Batch
from vla_ft.training.assembly import Run, places_of
from vla_ft.training.engines import Engine
from vla_ft.training.optimizers import set_learning_rates


def update(run: Run, batches: Iterator[Batch], engine: Engine, stop: bool) -> tuple[dict[str, float], bool]:
    """Take the run one step further. Collective.

    Returns the losses (mean over micro-batches and processes, with ``grad_norm`` and the learning rates ``lr/<part>``)
    and whether any process wants to ``stop``. Raises UserError for a sample that cannot be read and, before the weights
    are touched, for a loss or gradient that is not finite; every process then leaves.
    """
    state, config = run.state, run.state.config
    micro_batches, stop = _fetch(batches, config.batch.accumulation, engine, stop)
    rates = set_learning_rates(engine.optimizer, config.schedule, config.optimizer, state.step, config.steps)
    engine.zero_grad()
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches, 1):
        with engine.accumulating(last=number == len(micro_batches)):
            result = engine.loss(engine.move(batch))
            engine.backward(result.loss / len(micro_batches))
        for name, value in {"loss": result.loss, **result.metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / len(micro_batches)
    sums["grad_norm"] = engine.clip(config.optimizer.clip_grad_norm or math.inf)
    # The mean over processes is finite only if every one is, so all of them decide alike.
    means = dict(zip(sums, engine.mean(torch.stack([v.float() for v in sums.values()])).tolist(), strict=True))
    if not all(map(math.isfinite, means.values())):
        raise _not_finite(run, means, _where(micro_batches, engine))
    engine.step()
    if state.ema is not None:
        state.ema.update(engine.weights, state.step)
    state.step += 1
    state.position += run.global_batch
    return means | {f"lr/{name}": rate for name, rate in rates.items()}, stop


def _fetch(batches: Iterator[Batch], count: int, engine: Engine, stop: bool) -> tuple[list[Batch], bool]:
    """This process's micro-batches, and whether any process wants to stop. Collective.

    A sample that one process cannot read ends all of them here, before they wait for its gradients.
    """
    error, fetched = None, []
    try:
        fetched = [next(batches) for _ in range(count)]
    except UserError as mistake:
        error = str(mistake)
    flags = engine.sum(torch.tensor([float(error is not None), float(stop)], device=engine.device)).tolist()
    if flags[0]:
        engine.agree(error)
    return fetched, bool(flags[1])


def _where(micro_batches: Sequence[Batch], engine: Engine) -> str:
    """Whether what came into the update was not finite, or what it led to. Collective."""
    inputs = {
        key
        for batch in micro_batches
        for key, value in batch.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    }
    weights = [name for name, p in engine.trained.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
    found = engine.gather((sorted(inputs), weights))
    named = sorted({key for keys, _ in found for key in keys})
    if named:
        return f"The samples themselves are not finite: {', '.join(named)}"
    lost = list(dict.fromkeys(name for _, names in found for name in names))
    gradients = f"; {len(lost)} gradients are not, such as that of {lost[0]}" if lost else ""
    return f"Every number of the samples is finite{gradients}"


def _not_finite(run: Run, seen: dict[str, float], where: str) -> UserError:
    state = run.state
    places = places_of(run, range(state.position, state.position + run.global_batch))
    shown = ", ".join(f"{run.reader.name_of(episode)} step {step}" for episode, step in places[:4])
    numbers = ", ".join(f"{name} {value:g}" for name, value in seen.items())
    return UserError(
        f"Update {state.step + 1} is not finite ({numbers}). Its batch holds {shown}"
        f"{f' and {len(places) - 4} more samples' if len(places) > 4 else ''}. {where}. The weights were not changed "
        "and earlier checkpoints are good: lower optimizer.lr, set optimizer.clip_grad_norm, or look at these episodes "
        "(`vla-ft data check`)."
    )
