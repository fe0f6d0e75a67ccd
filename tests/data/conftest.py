"""Fixtures that write small sets to disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from episode_sets import SetOnDisk


@pytest.fixture
def new_set(tmp_path: Path) -> Callable[[], SetOnDisk]:
    """Makes an empty set; each call another."""
    made = iter(range(100))
    return lambda: SetOnDisk(tmp_path / f"set_{next(made)}")


@pytest.fixture
def aloha_set(new_set: Callable[[], SetOnDisk]) -> SetOnDisk:
    """Three episodes of 5, 9 and 7 steps, cameras top and wrist."""
    made = new_set()
    for length in (5, 9, 7):
        made.add(length)
    return made
