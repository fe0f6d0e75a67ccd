"""The page that lists open-pi-zero's keys says what the translator does, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from vla_ft.config import RunConfig
from vla_ft.config.checking import key_names
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.key_table import key_table
from vla_ft.policies.pizero.vocabulary import KEYS, Setting

PAGE = Path(__file__).parents[3] / "docs" / "pizero_keys.md"


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == key_table(), "python -m vla_ft.policies.pizero.key_table > docs/pizero_keys.md"
    assert all(f"| `{name}` |" in PAGE.read_text() for name in KEYS)


def test_every_counterpart_is_a_key_of_ours() -> None:
    ours = {*key_names(RunConfig), *(f"model.{name}" for name in key_names(Config))}
    named = [word for key in KEYS.values() if isinstance(key, Setting) for word in re.findall(r"`([a-z_.]+)", key.here)]
    free = ("optimizer.groups.", "lora.", "data.mock.", "ema.", "n_updates", "use_bf", "data.train.", "cards")
    assert len(named) > 70
    assert not {word for word in named if not word.startswith(free)} - ours
