"""The doctor's checks, one a file. Adding one is a file and a line here."""

from __future__ import annotations

from vla_ft.environment.checks import (
    cards,
    compose,
    disk,
    driver,
    engine,
    images,
    platform,
    runtime,
    shared_memory,
    users,
)
from vla_ft.environment.checks.base import Check

CHECKS: tuple[Check, ...] = (
    platform.CHECK,
    driver.CHECK,
    cards.CHECK,
    engine.CHECK,
    runtime.CHECK,
    users.CHECK,
    compose.CHECK,
    images.CHECK,
    shared_memory.CHECK,
    disk.CHECK,
)
