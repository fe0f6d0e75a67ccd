"""What is an episode's damage, and what a fault of the machine that reads it."""

from __future__ import annotations

import errno

from vla_ft.errors import UserError


def damage_sentence(error: UserError) -> str:
    """What is wrong with an episode. Raises ``error`` itself when the machine failed (a disk, the network, rights), not
    the data: the next attempt may find the episode whole, so it must not be left out."""
    refuse_failing_disk(error)
    return str(error)


def refuse_failing_disk(error: BaseException) -> None:
    """Raise ``error`` when the machine failed and not the data, as told by what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):
            raise error
        cause = cause.__cause__ or cause.__context__
