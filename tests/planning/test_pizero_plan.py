"""π0 fits where its recipes say: full size traced without numbers, and the small form held against a real step."""

from __future__ import annotations

import pytest

from vla_ft.planning.cards import Target
from vla_ft.planning.command import make_plan, read_request
from vla_ft.planning.forecast import Planner
from vla_ft.planning.imagined import describe
from vla_ft.planning.measurement import measure_step
from vla_ft.planning.options import setup_of
from vla_ft.planning.search import Plan
from vla_ft.planning.states import GIB


def planned(recipe: str, card: str) -> Plan:
    return make_plan(read_request([f"recipe={recipe}", f"card={card}", "cards=1"]))


@pytest.mark.parametrize("words", [(), ("freeze=[vlm]",), ("activation_checkpointing=true",)])
def test_the_forecast_is_what_a_real_step_allocates(words: tuple[str, ...]) -> None:
    request = read_request(["recipe=pizero-mock", "device=cpu", "batch.per_device=4", *words])
    description = describe(request.config)
    planner = Planner(description, card=False)
    target = Target("this CPU", 64.0, 1)
    forecast = planner.forecast(request.config, setup_of(request.config, target, planner))
    measured = measure_step(request.config, description).peak
    assert forecast.peak.total == pytest.approx(measured, rel=0.02)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("recipe", "card", "needs"), [("pizero-full-24gb", "24GiB", 17.6), ("pizero-action-12gb", "12GiB", 10.3)]
)
def test_the_recipes_fit_their_cards(recipe: str, card: str, needs: float) -> None:
    plan = planned(recipe, card)
    assert plan.asked is not None and plan.recommended == plan.asked
    assert plan.asked.forecast.needed / GIB == pytest.approx(needs, abs=0.3)
    assert plan.largest_batch >= 16
