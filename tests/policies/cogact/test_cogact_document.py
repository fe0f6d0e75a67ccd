"""What docs/cogact.md offers to be copied: the run without weights ends soon, and recipes augment as it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vla_ft.cli import main
from vla_ft.config import load_run_config, recipe_names

PAGE = (Path(__file__).parents[3] / "docs/cogact.md").read_text(encoding="utf-8")


def lines() -> list[list[str]]:
    """Words of every ``vla-ft train`` of the indented blocks."""
    found = re.findall(r"^    vla-ft train (.*)$", PAGE, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def without_weights() -> list[str]:
    (found,) = [words for words in lines() if "init.path=null" in words]
    return found


def test_the_line_without_weights_ends_soon() -> None:
    config = load_run_config([*without_weights(), "output=run"])
    assert config.data.path == "mock" and config.model.size == "mock"
    assert config.steps <= 20 and config.schedule.warmup_steps < config.steps
    assert (config.data.workers, config.data.mock.episodes) <= (0, 8) and config.validation.samples <= 8


@pytest.mark.nightly
def test_the_line_without_weights_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *without_weights(), f"output={tmp_path / 'run'}"]) == 0
    assert "finished step 20" in capsys.readouterr().out


def test_recipes_augment_as_the_page_says() -> None:
    """Where pictures can be augmented and are not, the page says why."""
    names = [name for name in recipe_names() if re.match(r"cogact-(base|head)|custom-", name)]
    found = {name: load_run_config([f"recipe={name}", "data.path=d", "output=o"]).data.augmentation for name in names}
    assert {name for name, value in found.items() if value == "cogact"} == {"cogact-base", "cogact-base-lora-24gb"}
    assert "augmented in `cogact-base` and the LoRA recipe" in " ".join(PAGE.split())
    offered = next(words for words in lines() if "data.path=DIR" in words)
    assert "data.augmentation=cogact" in offered
