"""The doctor and the choice of an environment, judged on the answers of machines that are not here.

The files in ``recorded/`` have the form of ``invoke doctor --record``; they were composed from what such machines are
known to report, not captured on them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vla_ft.environment.checks import CHECKS
from vla_ft.environment.checks.base import Level
from vla_ft.environment.doctor import as_data, examine, healthy
from vla_ft.environment.facts import GIB, Device, Engine, Facts, Gpus, Image, from_json
from vla_ft.environment.selection import choose, fits
from vla_ft.environment.table import load_table
from vla_ft.errors import UserError

TABLE = load_table()
RECORDED = Path(__file__).parent / "recorded"


def machine(name, **changes):
    return dataclasses.replace(from_json((RECORDED / f"{name}.json").read_text()), **changes)


def with_gpus(driver, *devices):
    found = tuple(Device(name, capability, 24 * GIB) for name, capability in devices)
    return machine("no_driver", gpus=Gpus("ok", driver, found))


def findings(facts, check):
    return next(result.findings for result in examine(facts, TABLE) if result.check.name == check)


def text(facts, check):
    return " ".join(f"{one.text} {one.remedy}" for one in findings(facts, check))


@pytest.mark.newcomer
@pytest.mark.parametrize(
    ("name", "admitted", "best"),
    [
        ("rtx3090_driver470", ["cu118"], "cu118"),
        ("a100_driver535", ["cu118", "cu126", "cu128"], "cu126"),
        ("two_rtx5090_driver570", ["cu128"], "cu128"),
        ("mixed_3090_5090_driver570", ["cu128"], "cu128"),
        ("no_driver", [], "cpu"),
    ],
)
def test_what_fits_and_what_is_best(name, admitted, best):
    facts = machine(name)
    assert [fit.environment.name for fit in fits(facts, TABLE) if fit.usable] == admitted
    assert choose(facts, TABLE).environment.name == best
    assert healthy(examine(facts, TABLE))


@pytest.mark.parametrize(
    ("driver", "name", "capability", "best"),
    [
        ("525.60.13", "NVIDIA GeForce RTX 3090", (8, 6), "cu118"),
        ("560.35.03", "NVIDIA GeForce RTX 3090", (8, 6), "cu126"),
        ("570.133.07", "NVIDIA GeForce RTX 3090", (8, 6), "cu128"),
        ("470.256.02", "NVIDIA A100-SXM4-40GB", (8, 0), "cu118"),
        ("525.60.12", "NVIDIA A100-SXM4-40GB", (8, 0), "cu118"),
        ("525.60.13", "NVIDIA A100-SXM4-40GB", (8, 0), "cu126"),
        # Not in the table: the default of the cards of the same capability, the oldest where they differ.
        ("550.54", "NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), "cu126"),
        ("535.183.06", "NVIDIA GeForce RTX 3050", (8, 6), "cu118"),
        ("535.183.06", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", (8, 0), "cu126"),
        ("570.133.07", "NVIDIA GeForce RTX 5090 Laptop GPU", (12, 0), "cu128"),
        ("575.51.03", "NVIDIA H200", (9, 0), "cu128"),
    ],
)
def test_the_driver_decides_among_environments_that_hold_the_card(driver, name, capability, best):
    assert choose(with_gpus(driver, (name, capability)), TABLE).environment.name == best


def test_a_driver_older_than_everything_is_an_error_with_the_driver_to_get():
    facts = with_gpus("440.33.01", ("Tesla V100-SXM2-16GB", (7, 0)))
    with pytest.raises(UserError, match=r"driver 440\.33\.01.*Expected driver 450\.80\.02"):
        choose(facts, TABLE)
    assert "Raise it to 450.80.02" in text(facts, "driver")
    assert not healthy(examine(facts, TABLE))


def test_a_blackwell_card_behind_an_old_driver_asks_for_blackwells_driver():
    for name in ("NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 5090 Laptop GPU"):
        facts = with_gpus("560.35.03", (name, (12, 0)))
        with pytest.raises(UserError, match="Expected driver 570 or newer"):
            choose(facts, TABLE)


def test_a_card_without_code_anywhere_is_an_error():
    facts = with_gpus("580.65.06", ("NVIDIA of tomorrow", (13, 0)), ("NVIDIA RTX PRO 500 Blackwell", (12, 0)))
    with pytest.raises(UserError, match="No environment holds code"):
        choose(facts, TABLE)
    levels = [one.level for one in findings(facts, "cards")]
    assert levels == [Level.ERROR, Level.WARN]


@pytest.mark.parametrize(
    ("typed", "product", "capability"),
    [
        ("1080ti", "NVIDIA GeForce GTX 1080 Ti", (6, 1)),
        ("p100", "Tesla P100-PCIE-16GB", (6, 0)),
        ("b300", "NVIDIA B300 SXM6 AC", (10, 3)),
        ("gb10", "NVIDIA GB10", (12, 1)),
        ("thor", "NVIDIA Thor", (11, 0)),
    ],
)
def test_a_refused_card_is_refused_whether_typed_or_found(typed, product, capability):
    with pytest.raises(UserError, match="cannot be used: ") as by_name:
        TABLE.environment_for(typed)
    facts = with_gpus("580.65.06", (product, capability))
    reason = str(by_name.value).partition(": ")[2].rstrip(".")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES") as by_driver:
        choose(facts, TABLE)
    assert reason in str(by_driver.value) and product in str(by_driver.value)
    (found,) = findings(facts, "cards")
    assert found.level is Level.ERROR and reason in found.text
    assert not healthy(examine(facts, TABLE))


def test_blind_nvml_is_not_taken_for_a_machine_without_cards():
    for state in ("no bindings", "mismatch"):
        with pytest.raises(UserError, match="invoke doctor"):
            choose(machine("no_driver", gpus=Gpus(state, message="x")), TABLE)


def test_the_old_driver_learns_what_a_newer_one_would_gain():
    said = text(machine("rtx3090_driver470"), "driver")
    assert "Driver 470.256.02 admits cu118; best here: cu118." in said
    assert "would open cu126: CUDA 12.6 with flash_attention_2. Raise it to 525.60.13" in said
    assert "would open cu128" in said


def test_minor_version_compatibility_is_said():
    said = text(machine("a100_driver535"), "driver")
    assert "cu126 runs by CUDA's minor-version compatibility" in said and "560.28.03 lifts this" in said
    assert "cu128 also works here by minor-version compatibility" in said


def test_states_without_cards_are_different_sentences():
    states = ("no library", "no driver", "no bindings", "mismatch", "failed")
    said = {state: findings(machine("no_driver", gpus=Gpus(state)), "driver") for state in states}
    assert len({one[0].text for one in said.values()}) == len(states)
    assert [said[state][0].level for state in states] == [Level.OK, Level.WARN, Level.ERROR, Level.ERROR, Level.ERROR]


def test_cards_are_named_once_a_kind():
    both = findings(machine("two_rtx5090_driver570"), "cards")
    assert len(both) == 1
    assert both[0].text == "2 x NVIDIA GeForce RTX 5090, sm_120, 31.8 GiB: 'rtx5090', code in cu128."
    assert len(findings(machine("mixed_3090_5090_driver570"), "cards")) == 2


def test_a_card_that_contradicts_the_table_is_an_error():
    (found,) = findings(with_gpus("570.133.07", ("NVIDIA GeForce RTX 5090", (9, 0))), "cards")
    assert found.level is Level.ERROR and "says sm_120" in found.text


def test_cards_without_bfloat16_are_told():
    (found,) = findings(with_gpus("550.54", ("Tesla T4", (7, 5))), "cards")
    assert found.level is Level.WARN and "precision=fp32" in found.remedy


def test_an_engine_without_nvidia_runtime_matters_only_with_cards():
    engine = Engine("ok", "28.2.2", nvidia_runtime=False, compose="2.36.0", buildx="0.24.0")
    assert findings(machine("a100_driver535", engine=engine), "runtime")[0].level is Level.WARN
    assert findings(machine("no_driver", engine=engine), "runtime")[0].level is Level.OK


def test_no_engine_is_a_warning_because_everything_runs_locally():
    facts = machine("no_driver", engine=Engine("unreachable", message="refused"))
    results = examine(facts, TABLE)
    assert healthy(results)
    assert findings(facts, "engine")[0].level is Level.WARN
    assert not findings(facts, "images") and not findings(facts, "compose")


def test_images_of_older_locks_are_named():
    current = TABLE.environment("cu126").lock_hash
    images = (Image("vla_ft:cu126", "cu126", current), Image("vla_ft:cpu", "cpu", "0" * 12), Image("x:1", "cu99", ""))
    found = findings(machine("no_driver", engine=Engine("ok", images=images)), "images")
    assert [one.level for one in found] == [Level.OK, Level.WARN, Level.WARN]
    assert "invoke build --gpu cpu" in found[1].remedy


@pytest.mark.parametrize(
    ("compose", "level"), [(None, Level.WARN), ("2.5.0", Level.WARN), ("2.26.1-4", Level.OK), ("v5.0.0", Level.OK)]
)
def test_compose_versions(compose, level):
    engine = Engine("ok", compose=compose, buildx="0.24.0")
    assert findings(machine("no_driver", engine=engine), "compose")[0].level is level


@pytest.mark.parametrize(
    ("size", "level", "words"),
    [(None, Level.WARN, "workers=0"), (64 * 2**20, Level.WARN, "0.06 GiB"), (8 * GIB, Level.OK, "8.00 GiB")],
)
def test_shared_memory(size, level, words):
    (found,) = findings(machine("no_driver", shared_memory_bytes=size), "shared-memory")
    assert found.level is level and words in found.text + found.remedy


@pytest.mark.parametrize(("free", "level"), [(1 * GIB, Level.ERROR), (9 * GIB, Level.WARN), (90 * GIB, Level.OK)])
def test_disk(free, level):
    assert findings(machine("no_driver", disk_free_bytes={"/home": free}), "disk")[0].level is level


def test_other_platforms_are_refused():
    assert findings(machine("no_driver", machine="aarch64"), "platform")[0].level is Level.ERROR
    assert findings(machine("no_driver", system="Darwin"), "platform")[0].level is Level.ERROR


def test_every_warning_and_error_says_what_to_do():
    bare = Facts(gpus=Gpus("failed", message="x"), engine=Engine("unreachable"), disk_free_bytes={"/": 0})
    names = sorted(path.stem for path in RECORDED.glob("*.json"))
    for facts in [bare, Facts(system="Darwin", machine="arm64"), *(machine(name) for name in names)]:
        for result in examine(facts, TABLE):
            for finding in result.findings:
                assert finding.level is Level.OK or finding.remedy, finding


def test_json_holds_every_check_once():
    data = json.loads(json.dumps(as_data(examine(machine("a100_driver535"), TABLE))))
    assert data["healthy"] is True
    assert [one["check"] for one in data["checks"]] == [check.name for check in CHECKS]
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize(("users", "level"), [("", Level.OK), ("rootless", Level.OK), ("remapped", Level.WARN)])
def test_engines_that_map_users(users, level):
    assert findings(machine("no_driver", engine=Engine("ok", users=users)), "users")[0].level is level
    assert not findings(machine("no_driver", engine=Engine("unreachable")), "users")
