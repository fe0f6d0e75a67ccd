"""Which combinations fit, which is recommended, and how large a batch may be."""

from __future__ import annotations

import dataclasses

import pytest
from imagined_models import Tower, seven_billion

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.planning.cards import Target
from vla_ft.planning.command import judge
from vla_ft.planning.forecast import Planner
from vla_ft.planning.imagined import describe
from vla_ft.planning.options import changes_maths
from vla_ft.planning.output import plan_as_data, sentences
from vla_ft.planning.search import plan
from vla_ft.training.compatibility import Setup, refusals

WORDS = ("recipe=act-mock", "batch.per_device=4", "model.chunk_size=64", "data.mock.image_size=[32,32]")


@pytest.fixture(scope="module")
def planner():
    """One for all tests: what was traced once is known. 102 million weights, 1.5 GiB of states."""
    config = load_run_config(WORDS)
    return Planner(describe(config), build=lambda: Tower(depth=8, width=1024, heads=8, inner=2816))


def planned(planner, gib, cards, *words):
    return plan(load_run_config([*WORDS, *words]), planner, Target("test", gib, cards))


def test_what_fits_as_asked_is_left_alone(planner):
    found = planned(planner, 8.0, 4)
    assert found.recommended is found.asked
    assert found.asked.line == ""
    assert found.largest_batch > 4


def test_the_maths_stays_when_another_engine_is_enough(planner):
    found = planned(planner, 2.0, 4)
    assert not found.asked.forecast.fits(found.target)
    assert found.recommended.line.startswith("engine=")
    assert not found.recommended.changes_maths
    load_run_config([*WORDS, *found.recommended.overrides])  # ready to paste


@pytest.mark.parametrize(
    ("asked", "other", "changes"),
    [
        (("precision=bf16",), ("precision=bf16", "engine=fsdp2"), True),  # autocast, then bfloat16 weights
        ((), ("engine=fsdp2",), False),
        (("precision=bf16", "freeze=[backbone]"), ("precision=bf16", "freeze=[backbone]", "frozen_dtype=bf16"), True),
    ],
)
def test_the_maths_changes_with_the_type_that_is_computed_in(asked, other, changes):
    one, two = (Setup.of(load_run_config([*WORDS, *words]), 2, 2) for words in (asked, other))
    assert changes_maths(one, two) is changes


def test_every_option_is_admitted_by_the_compatibility_table(planner):
    found = planned(planner, 1.0, 2)
    for option in found.options:
        assert not refusals(Setup.of(option.config, 2, 2)), option.line
        assert option.forecast.setup == Setup.of(load_run_config([*WORDS, *option.overrides]), 2, 2)


def test_the_largest_batch_fits_and_one_more_does_not(planner):
    found = planned(planner, 4.0, 1)
    best, target = found.recommended, found.target
    for size, fits in ((found.largest_batch, True), (found.largest_batch + 1 + found.largest_batch // 50, False)):
        batch = dataclasses.replace(best.config.batch, per_device=size)
        config = dataclasses.replace(best.config, batch=batch)
        assert planner.forecast(config, best.forecast.setup).fits(target) is fits


def test_what_cannot_fit_is_refused_with_what_to_say_instead(planner):
    config, target = load_run_config(WORDS), Target("test", 2.0, 4)
    with pytest.raises(UserError, match=r"(?s)does not fit.*\nSay engine=fsdp2") as refused:
        judge(config, target, planner)
    assert "plan=warn" in str(refused.value)
    _, _, warning = judge(dataclasses.replace(config, plan="warn"), target, planner)
    assert "does not fit" in warning


def test_states_that_exceed_the_card_say_that_the_batch_does_not_help(planner):
    found = planned(planner, 1.0, 1)
    assert "a smaller batch.per_device frees activations alone" in " ".join(sentences(found))
    data = plan_as_data(found)
    assert all(option["fits"] == (option["needed"] <= 2**30) for option in data["options"])


def test_other_methods_are_looked_at_where_nothing_fits(planner):
    found = planned(planner, 0.75, 1)
    assert found.recommended is None and found.largest_batch == 0
    assert {option.method for option in found.alternatives} >= {"vlm frozen"}
    assert found.hopeless > 0, "without a trace"


def test_smaller_pieces_of_the_same_batch_are_forecast_with_their_accumulation(planner):
    found = planned(planner, 1.7, 2, "batch.per_device=1024")
    best = found.recommended
    assert best is not None and best.config.batch.per_device * best.config.batch.accumulation == 1024
    assert best.forecast.setup == Setup.of(best.config, 2, 2)
    assert best.forecast.setup.accumulation == best.config.batch.accumulation > 1
    assert found.alternatives == ()


def test_fewer_bytes_in_every_step_of_sharding(planner):
    config = load_run_config(WORDS)
    needed = [
        planner.forecast(dataclasses.replace(config, engine="fsdp2"), Setup.of(changed, world, world)).peak.total
        for world in (2, 4, 8)
        for changed in [dataclasses.replace(config, engine="fsdp2")]
    ]
    assert needed == sorted(needed, reverse=True)


def test_what_the_drivers_share_would_tip_fits_barely(planner):
    config = load_run_config(WORDS)
    forecast = planner.forecast(config, Setup.of(config, 1, 1))
    needed = forecast.needed / 2**30
    for room, verdict in ((1.01, "barely fits"), (1.1, "fits"), (0.99, "does not fit")):
        assert forecast.sentence(Target("test", needed * room, 1)).startswith(f"{verdict}: ")


def test_offload_is_held_against_the_host(planner):
    config = load_run_config([*WORDS, "engine=fsdp2", "offload=all"])
    forecast = planner.forecast(config, Setup.of(config, 1, 1))
    held = forecast.host.peak / 2**30
    assert forecast.fits(Target("test", 24.0, 1)) and forecast.fits(Target("test", 24.0, 1, host_gib=held + 1))
    little = Target("test", 24.0, 1, host_gib=held - 1)
    assert not forecast.fits(little)
    assert "of host memory" in forecast.sentence(little)


@pytest.mark.nightly
def test_seven_billion_on_four_cards_of_22_gib_as_in_the_document():
    config = load_run_config([*WORDS, "engine=fsdp2", "precision=bf16", "activation_checkpointing=true"])
    planner = Planner(describe(config), build=seven_billion)
    with pytest.raises(UserError, match="cannot help"):
        judge(config, Target("22 GiB", 22.0, 4), planner)
