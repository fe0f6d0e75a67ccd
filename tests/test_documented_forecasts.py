"""The forecasts in CogACT's table of recipes are those of the committed result, and every such recipe has one there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

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
