"""RDT's recipes are forecast to fit the cards that they are named for."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_ft.config import load_run_config
from vla_ft.planning.cards import target_of
from vla_ft.planning.forecast import Planner
from vla_ft.planning.imagined import describe
from vla_ft.planning.options import setup_of

GIB = 2**30
DOCS = Path(__file__).parents[2] / "docs" / "rdt.md"


def documented(recipe: str) -> float:
    """GiB that docs/rdt.md says."""
    rows = (line.split("|") for line in DOCS.read_text().splitlines() if line.startswith(f"| `{recipe}` |"))
    return float(next(rows)[4].split()[0])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("recipe", "card", "least", "most"),
    [("rdt-1b-16gb", "16GiB", 8, 16), ("rdt-1b-24gb", "24GiB", 12, 24), ("rdt-170m-16gb", "16GiB", 4, 16),
     ("rdt-1b", "80GiB", 19, 80)],
)  # fmt: skip
def test_recipe_fits_its_card(recipe: str, card: str, least: float, most: float) -> None:
    config = load_run_config([f"recipe={recipe}", "data.path=mock"])
    description = describe(config)
    planner = Planner(description)
    target = target_of(card, 1)
    forecast = planner.forecast(config, setup_of(config, target, planner))
    needed = forecast.needed / GIB
    print(f"{recipe}: {needed:.2f} GiB needed, {forecast.peak.total / GIB:.2f} GiB allocated")
    assert least < needed < most
    assert needed == pytest.approx(documented(recipe), abs=0.06), "docs/rdt.md"
    assert forecast.parameters == ((166_229_888 if "170m" in recipe else 1_228_319_872), 412_987_248)
