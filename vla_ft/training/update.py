"""One optimizer update: forward and backward over the micro-batches, clipping, step, average."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vla_ft.errors import UserError
from vla_ft.policies.base import Batch
from vla_ft.training.assembly import Run, places_of
from vla_ft.training.engines import Engine, forward
from vla_ft.training.optimizers import schedule_factor, set_learning_rates


def update(
    run: Run, module: nn.Module, batches: Iterator[Batch], engine: Engine, stop: bool
) -> tuple[dict[str, float], bool]:
    """Take the run one step further. Collective.

    Returns the losses (mean over micro-batches and processes, with ``grad_norm`` and the learning rates ``lr/<part>``)
    and whether any process wants to ``stop``. Raises UserError, before the weights are touched, when the loss or the
    gradient of any process is not finite.
    """
    state, config = run.state, run.state.config
    rates = set_learning_rates(state.optimizer, schedule_factor(config.schedule, state.step, config.steps))
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for micro in range(config.batch.accumulation):
        batch = engine.move(next(batches))
        with engine.accumulating(module, last=micro == config.batch.accumulation - 1):
            result = forward(module, batch, config.precision, engine.device)
            (result.loss / config.batch.accumulation).backward()
        for name, value in {"loss": result.loss, **result.metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / config.batch.accumulation
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_grad_norm or math.inf)

    names = list(sums)
    local = torch.stack([*sums.values(), norm.float()])
    finite = bool(torch.isfinite(local).all())
    flags = engine.sum(torch.tensor([float(not finite), float(stop)], device=engine.device)).tolist()
    if flags[0]:
        raise _not_finite(run, dict(zip([*names, "grad_norm"], local.tolist(), strict=True)))
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.model, state.step)
    state.step += 1
    state.position += run.global_batch
    means = dict(zip([*names, "grad_norm"], engine.mean(local).tolist(), strict=True))
    return means | {f"lr/{name}": rate for name, rate in rates.items()}, bool(flags[1])


def _not_finite(run: Run, seen: dict[str, float]) -> UserError:
    state = run.state
    places = places_of(run, range(state.position, state.position + run.global_batch))
    shown = ", ".join(f"{run.reader.name_of(episode)} step {step}" for episode, step in places[:4])
    numbers = ", ".join(f"{name} {value:g}" for name, value in seen.items())
    return UserError(
        f"Update {state.step + 1} is not finite ({numbers}). Its batch holds {shown}"
        f"{f' and {len(places) - 4} more samples' if len(places) > 4 else ''}. The weights were not changed and "
        "the last checkpoint is good: lower optimizer.lr, set optimizer.clip_grad_norm, or look at these episodes."
    )
