"""The contract of a check: a name, a group, what it looks at, and a function from facts and table to findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from vla_ft.environment.facts import Facts
from vla_ft.environment.table import Table


class Level(Enum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"
    """Works, but worse or later."""
    ERROR = "error"
    """Something that the user will want to do fails."""


@dataclass(frozen=True)
class Finding:
    """One sentence on what is, and one on what to do about it."""

    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """A look at one thing. It only judges facts, so a test can hand it any machine."""

    name: str
    group: str
    what: str
    run: Callable[[Facts, Table], list[Finding]]


def ok(text: str, remedy: str = "") -> Finding:
    """All is well; ``remedy`` may say what could still be gained."""
    return Finding(Level.OK, text, remedy)


def warn(text: str, remedy: str) -> Finding:
    """Works, but worse or later."""
    return Finding(Level.WARN, text, remedy)


def error(text: str, remedy: str) -> Finding:
    """Does not work until the remedy is applied."""
    return Finding(Level.ERROR, text, remedy)
