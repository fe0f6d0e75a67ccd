"""``PATH key=value ...``: the words of commands that are about one dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vla_ft.errors import UserError

_PAIR = re.compile(r"[a-z_][a-z0-9_.]*=")


def path_first(arguments: Sequence[str], command: str) -> list[str]:
    """The words with PATH as ``data.path=PATH``, and ``allow_pickle=`` as the key of ``data`` that it is.

    Raises UserError unless there is exactly one dataset.
    """
    arguments = [f"data.{word}" if word.startswith("allow_pickle=") else word for word in arguments]
    paths = [word for word in arguments if not _PAIR.match(word)]
    pairs = [word for word in arguments if _PAIR.match(word)]
    named = [word for word in pairs if word.startswith("data.path=")]
    if len(paths) + len(named) != 1:
        seen = ", ".join((*paths, *named)) or "none"
        raise UserError(f"{command} takes one dataset, such as `{command} datasets/mine key=value ...`; got {seen}.")
    return [*pairs, *(f"data.path={path}" for path in paths)]
