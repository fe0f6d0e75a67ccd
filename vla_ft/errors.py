"""A user's mistake, told in one sentence or two: what was wrong, the value seen, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend. The command lines print its message without a traceback and exit with 2."""


class EndedByPeer(UserError):
    """Another process of the same run met a mistake and says it; this one only leaves."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table: what was typed, the nearest name, and the whole list."""
    names = sorted(known)
    return UserError(f"Unknown {kind} '{name}'.{nearest(name, names)} Known: {', '.join(names)}.")
