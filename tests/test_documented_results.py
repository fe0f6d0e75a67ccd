"""What the documents say of CogACT's recipes and learning are the committed results' numbers, and no others.

Every recipe with a forecast has one there.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vla_ft.config import load_run_config
from vla_ft.data.split import split_episodes

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_cogact_is_the_result_of_its_script() -> None:
    plans = json.loads((ROOT / "benchmarks/results/cogact_plans.json").read_text())["plans"]
    cases = script("cogact_plans").CASES
    assert [plan["command"] for plan in plans] == ["vla-ft plan " + " ".join(words) for words in cases]
    asked = {
        words[0].removeprefix("recipe="): plan["options"][0]
        for words, plan in zip(cases, plans, strict=True)
        if not any(word.startswith("precision=") for word in words)
    }
    lines = (ROOT / "docs/cogact.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith(("| `cogact-", "| `custom-finetune"))}
    assert rows.keys() - asked.keys() == {"cogact-mock"}
    for recipe, one in asked.items():
        if one["fits"]:
            assert f"{one['needs_gib']:.1f} with the margin" in rows[recipe], recipe
            assert f"{one['needs_gib'] - one['margin_gib']:.1f} GiB" in rows[recipe], recipe
        else:
            assert "refused" in rows[recipe], recipe


def learned() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results/cogact_learning.json").read_text())
    return found


def test_what_is_said_of_learning_is_the_result() -> None:
    """The held-out error is named by its unit, and nothing is compared on held-out windows."""
    own, other = learned()["own_pictures"], learned()["other_pictures"]
    held = own["held_out"]
    assert held["action_l1"] != held["action_mae"] and "held_out" not in other
    lines = (ROOT / "benchmarks/README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| `cogact_learning.json`"))
    assert f"error {held['action_l1']:.3f} normalised ({held['action_mae']:.3f} in the robot's units)" in row
    said = {float(number) for number in re.findall(r"\b0\.\d{3}\b", row)}
    numbers = (own["first"], own["last"], other["last"], held["loss"], held["action_l1"], held["action_mae"])
    assert said == {round(number, 3) for number in numbers}
    config = load_run_config(["recipe=cogact-mock", "output=unused", *script("cogact_learning").SMALL])
    split = split_episodes(config.data.mock.episodes, fraction=config.data.validation_fraction, seed=config.seed)
    assert f"the {len(split.training)} training discs" in row


def test_the_learning_benchmark_compares_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = script("cogact_learning")
    quick = ("model.num_ddim_steps=1", "data.mock.episodes=8", "batch.per_device=4")
    monkeypatch.setattr(benchmark, "SMALL", (*benchmark.SMALL, *quick))
    monkeypatch.setattr("sys.argv", ["cogact_learning.py", str(tmp_path / "result.json"), "--steps=2"])
    benchmark.main()
    found = json.loads((tmp_path / "result.json").read_text())
    own, other = found["own_pictures"], found["other_pictures"]
    assert {"loss", "action_l1", "action_mae"} <= own["held_out"].keys() and "held_out" not in other
    assert len(own["losses"]) == len(other["losses"]) == 2 and own["losses"] != other["losses"]
    printed = capsys.readouterr().out.splitlines()
    assert "held out: " in printed[-2] and "held out" not in printed[-1]
