"""A plan as a table, as JSON, and as the words of a refusal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vla_ft.checkpoints import write_json
from vla_ft.planning.batches import LARGEST_BATCH
from vla_ft.planning.cards import Target
from vla_ft.planning.forecast import Forecast
from vla_ft.planning.options import Option
from vla_ft.planning.search import Plan
from vla_ft.planning.states import GIB

PLAN = "plan.json"
"""What `vla-ft plan` found."""
FORECAST = "forecast.json"
"""In a run folder: what was foreseen for this run, and what was measured."""
SMALLEST = 5
"""Options listed beside the asked one where nothing fits."""
KINDS = ("weights", "gradients", "optimizer", "average", "activations", "temporaries", "buffers")


def print_plan(console: Console, found: Plan) -> None:
    """The options with their bytes by kind, then the answer in sentences."""
    target = found.target
    size = f"{target.memory_gib:g} GiB"
    name = size if target.name == size else f"{target.name} ({size})"
    table = Table(title=f"Memory of each card, GiB; {target.cards} x {name}")
    table.add_column("say this", overflow="fold")
    for name in ("weights", "grads", "optim.", "EMA", "activ.", "temp.", "engine", "margin", "needs", "host", "fits"):
        table.add_column(name, justify="right")
    shown, more = _shown(found)
    for option in shown:
        _add(table, option, target, escape(option.line) or "(as asked)")
    console.print(table)
    if more:
        console.print(f"None fits; {more} more are in plan.json with output=DIR.", soft_wrap=True, highlight=False)
    if found.alternatives:
        other = Table(title="Other methods: they train something else than what was asked for")
        for name in ("method", "say this"):
            other.add_column(name, overflow="fold")
        for name in ("needs", "fits"):
            other.add_column(name, justify="right")
        for option in found.alternatives:
            fits = "yes" if option.forecast.fits(target) else "no"
            other.add_row(option.method, escape(option.line), f"{option.forecast.needed / GIB:.1f}", fits)
        console.print(other)
    for line in sentences(found):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _add(table: Table, option: Option, target: Target, label: str) -> None:
    forecast = option.forecast
    values = [getattr(forecast.peak, kind) for kind in KINDS]
    values += [forecast.needed - forecast.allocated, forecast.needed, forecast.host.peak]
    fits = forecast.fits(target)
    table.add_row(
        label, *(f"{value / GIB:.2f}" for value in values), "yes" if fits else "no", style="" if fits else "dim"
    )


def sentences(found: Plan) -> list[str]:
    """What was asked, what is recommended and how far it goes."""
    lines = []
    if found.asked is None:
        lines.append("As asked, this combination is refused before anything is loaded: " + " ".join(found.refused))
    else:
        trained, frozen = found.asked.forecast.parameters
        lines.append(
            f"{trained:,} trained weights, {frozen:,} frozen. As asked it {found.asked.forecast.sentence(found.target)}"
        )
    if found.hopeless:
        lines.append(
            f"{found.hopeless} further combinations are not shown: weights, gradients and moments alone exceed a card."
        )
    best = found.recommended
    shown = best or found.asked
    if shown is not None and shown.forecast.caching is not None:
        lines.append(shown.forecast.caching_sentence() + ".")
    if best is None:
        lines.append("Nothing that keeps the method fits, not even one sample at a time. Take more or larger cards, or "
                     "one of the other methods above.")  # fmt: skip
        return lines
    if best.overrides:
        change = " It changes the rounding of the weights or moments." if best.changes_maths else " The maths stays."
        lines.append(f"Recommended: {best.line}.{change}")
    if best.forecast.setup.offload != "none":
        lines.append(f"It takes {best.forecast.host.peak / GIB:.1f} GiB of host memory.")
    lines.append(f"Largest batch.per_device that fits with it: {_batch(found.largest_batch)}.")
    lines.append(f"Checkpoint on disk: {best.forecast.checkpoint_bytes / GIB:.2f} GiB each.")
    return lines


def _batch(size: int) -> str:
    return f"{size} or more" if size >= LARGEST_BATCH else str(size)


def _shown(found: Plan) -> tuple[list[Option], int]:
    """What the table lists, and how many options it leaves out: where nothing fits, all but the smallest."""
    options = list(found.options)
    if any(option.forecast.fits(found.target) for option in options):
        return options, 0
    asked = [option for option in options if option is found.asked]
    others = sorted((o for o in options if o is not found.asked), key=lambda option: option.forecast.needed)
    return asked + others[:SMALLEST], max(0, len(others) - SMALLEST)


def plan_as_data(found: Plan) -> dict[str, Any]:
    """Plain JSON types; bytes."""
    return {
        "target": dataclasses.asdict(found.target),
        "options": [_option(option, found.target) for option in found.options],
        "alternatives": [_option(option, found.target) for option in found.alternatives],
        "recommended": found.recommended.line if found.recommended else None,
        "largest_batch_per_device": found.largest_batch,
        "sentences": sentences(found),
        "refused": list(found.refused),
        "steps_traced": found.traced,
        "left_out_for_their_states": found.hopeless,
    }


def _option(option: Option, target: Target) -> dict[str, Any]:
    return {
        "overrides": list(option.overrides),
        "method": option.method or "as asked",
        "changes_maths": option.changes_maths,
        "fits": option.forecast.fits(target),
        **option.forecast.to_json(),
    }


def bars(found: Plan) -> list[tuple[str, dict[str, float], bool]]:
    """(label, GiB by kind, whether it fits) of each option, for a picture."""
    rows = []
    for option in (*found.options, *found.alternatives):
        forecast = option.forecast
        parts = {kind: getattr(forecast.peak, kind) / GIB for kind in KINDS}
        parts["margin"] = (forecast.needed - forecast.allocated) / GIB
        label = option.line or "as asked"
        rows.append((label, parts, forecast.fits(found.target)))
    return rows


def run_forecast(forecast: Forecast, target: Target) -> dict[str, Any]:
    """A run's own forecast as plain JSON types."""
    return {"target": dataclasses.asdict(target), "forecast": forecast.to_json()}


def beside_measured(folder: Path, kept: dict[str, Any], measured: int) -> str:
    """Leave this run's forecast in its folder with the measured peak, bytes; the two in a sentence, or nothing where
    nothing was measured."""
    if not measured:
        write_json(folder / FORECAST, kept)
        return ""
    foreseen = kept["forecast"]["peak"]["total"]
    error = foreseen / measured - 1
    write_json(folder / FORECAST, {**kept, "measured": {"peak_allocated": measured, "error": error}})
    return f"memory: {measured / GIB:.3f} GiB allocated at most, {foreseen / GIB:.3f} GiB foreseen ({error:+.1%})"
