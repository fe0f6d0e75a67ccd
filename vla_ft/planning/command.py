"""``vla-ft plan``, and what `vla-ft train` asks before it loads weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from vla_ft.config import RunConfig, load_run_config, recipe_value
from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError
from vla_ft.planning.cards import Target, target_of, visible_target
from vla_ft.planning.forecast import Forecast, Planner
from vla_ft.planning.imagined import MOCK, describe, imagine
from vla_ft.planning.measurement import measure_step
from vla_ft.planning.options import setup_of
from vla_ft.planning.search import Plan, plan
from vla_ft.planning.states import GIB
from vla_ft.training.compatibility import refuse

OWN_WORDS = ("card", "cards", "host", "measure")


@dataclass(frozen=True)
class Request:
    """What ``vla-ft plan`` was asked."""

    config: RunConfig
    card: str | None
    cards: int | None
    measure: bool
    """Also run a real step on this CPU and hold the forecast against it."""
    output: Path | None
    """Where plan.json and plan.png go, when a folder was named."""
    note: str
    """What the shapes were taken from, when it is not the dataset."""
    host: float | None = None
    """GiB of the machine's memory, when it was named."""


def read_request(words: Sequence[str]) -> Request:
    """``card=``, ``cards=`` and ``measure=`` are the command's own, all else is a run's configuration.

    Without ``data.path``, or where that folder is not here, shapes are those of the recipe's ``data.mock``.
    """
    own = dict(word.split("=", 1) for word in words if word.partition("=")[0] in OWN_WORDS and "=" in word)
    rest = [word for word in words if word.partition("=")[0] not in OWN_WORDS]
    given = dict(word.split("=", 1) for word in rest if "=" in word)
    note = ""
    if "data.path" not in given and recipe_value(given.get("recipe"), "data.path") is None:
        rest.append(f"data.path={MOCK}")
        note = "No data.path: cameras and dimensions are those of data.mock."
    config = load_run_config(rest)
    if config.data.path != MOCK and not Path(config.data.path).exists():
        note = f"{config.data.path} is not here: cameras and dimensions are those of data.mock."
    if own.get("measure", "false") not in ("true", "false"):
        raise UserError(f"measure={own['measure']}: expected true or false.")
    cards = _cards(own.get("cards"), config.devices)
    output = Path(config.output) if "output" in given else None
    host = target_of(own["host"], 1).memory_gib if "host" in own else None
    return Request(config, own.get("card"), cards, own.get("measure") == "true", output, note, host)


def _cards(said: str | None, devices: int | str) -> int | None:
    """How many cards: ``cards=``, or a run's ``devices=`` where that is a number; None leaves it to the machine."""
    if said is not None and not (said.isascii() and said.isdecimal()):
        raise UserError(f"cards={said}: expected a number, 1 or more.")
    named = devices if isinstance(devices, int) else None
    if said is None:
        return named
    if named is not None and named != int(said):
        raise UserError(
            f"cards={said} and devices={named} disagree: the plan would be for other cards than the run takes. "
            "Say one of them."
        )
    return int(said)


def make_plan(request: Request) -> Plan:
    """The plan of a request. Raises UserError for cards that are unknown and models that cannot be built."""
    target = target_of(request.card, request.cards)
    if request.host is not None:
        target = dataclasses.replace(target, host_gib=request.host)
    return plan(request.config, Planner(_described(request.config)), target)


def compare_on_cpu(config: RunConfig) -> str:
    """A forecast for one process on this CPU, and the allocator's own peak over a real step, in a sentence."""
    description = _described(config)
    config = dataclasses.replace(config, device="cpu", devices=1)
    planner = Planner(description, card=False)
    target = this_cpu()
    forecast = planner.forecast(config, setup_of(config, target, planner))
    measured = measure_step(config, description).peak
    error = forecast.peak.total / measured - 1
    return (
        f"on this CPU: {forecast.peak.total / GIB:.3f} GiB foreseen, {measured / GIB:.3f} GiB allocated by a real step "
        f"({error:+.2%})"
    )


def check_before_training(config: RunConfig, processes: int) -> tuple[Forecast, Target, str] | None:
    """The forecast of a run that is about to start; None with ``plan=off``, and on the CPU but for ``plan=warn``.

    Returns with it a warning, empty when it fits. Raises UserError, with what to say instead, when it cannot fit and
    ``plan`` is ``refuse``.
    """
    card = _on_a_card(config)
    if config.plan == "off" or not (card or config.plan == "warn"):
        return None
    world = max(processes, int(os.environ.get("WORLD_SIZE", "1")))
    planner = Planner(_described(config), card=card, local=processes if processes > 1 else None)
    return judge(config, visible_target(world) if card else this_cpu(world), planner)


def watched(config: RunConfig) -> bool:
    """Whether a run's updates are to be looked at for what they allocate: a card keeps that account by itself."""
    return config.plan == "warn" and not _on_a_card(config)


def this_cpu(processes: int = 1) -> Target:
    """This machine's memory, divided among so many processes."""
    return Target("this CPU", psutil.virtual_memory().total / GIB / processes, processes)


def judge(config: RunConfig, target: Target, planner: Planner) -> tuple[Forecast, Target, str]:
    """The forecast of ``config`` on ``target`` and a warning, empty when it fits. Raises as above."""
    setup = setup_of(config, target, planner)
    refuse(setup)
    forecast = planner.forecast(config, setup)
    if forecast.fits(target):
        return forecast, target, ""
    message = f"This run {forecast.sentence(target)}."
    if config.plan == "warn":
        return forecast, target, message
    best = plan(config, planner, target).recommended
    advice = f"Say {best.line}" if best else "No combination of this method fits: take more cards or larger ones"
    raise UserError(f"{message}\n{advice} (`vla-ft plan` shows the choices), or plan=warn to try it anyway.")


def _described(config: RunConfig) -> DatasetDescription:
    if config.data.path != MOCK and not Path(config.data.path).exists():
        return imagine(config.data.mock)
    return describe(config)


def _on_a_card(config: RunConfig) -> bool:
    promised = os.environ.get("VLA_FT_DEVICE") or "auto"
    if "cpu" in (config.device, promised):
        return False
    import torch

    return torch.cuda.is_available()
