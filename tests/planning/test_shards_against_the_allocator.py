"""Forecasts of FSDP2 and HSDP against the allocator where no transport adds copies of its own: all within 3 %."""

from __future__ import annotations

import pytest
from silent_group import CASES, NIGHTLY, foreseen_and_measured

TOLERANCE = 0.03


@pytest.mark.parametrize(
    ("world", "words"),
    [
        *(pytest.param(*case, id=name) for name, case in CASES.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.nightly) for name, case in NIGHTLY.items()),
    ],
)
def test_within_three_per_cent(world, words):
    foreseen, measured = foreseen_and_measured(world, words)
    assert foreseen.total == pytest.approx(measured, rel=TOLERANCE), str(foreseen)
