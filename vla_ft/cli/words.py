"""The words behind a command: options with dashes, and a command's verbs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vla_ft.errors import UserError, nearest

Run = Callable[[Sequence[str]], int]
"""A command or one of its verbs: takes the words behind its name, returns the exit code. Raises UserError."""


def without_dashes(words: Sequence[str]) -> list[str]:
    """``--format rlds`` and ``--format=rlds`` as ``format=rlds``."""
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("--") and "=" not in word:
            word = f"{word}={next(rest, '')}"
        key, equals, value = word.partition("=")
        plain.append(f"{key[2:].replace('-', '_')}={value}" if key.startswith("--") else f"{key}{equals}{value}")
    return plain


def run_verb(command: str, verbs: dict[str, Run], arguments: Sequence[str]) -> int:
    """Run one verb of a command that has several. Raises UserError."""
    verb = arguments[0] if arguments else ""
    if verb not in verbs:
        seen = f"Unknown verb '{verb}'.{nearest(verb, verbs)}" if verb else f"vla-ft {command} needs a verb."
        raise UserError(f"{seen} It has: {', '.join(verbs)}; see `vla-ft --help`.")
    return verbs[verb](arguments[1:])
