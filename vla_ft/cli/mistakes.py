"""What a command's errors become: a sentence and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from vla_ft.errors import EndedByPeer, UserError
from vla_ft.training.launch import tell_launcher


def guarded(run: Callable[[], int]) -> int:
    """The exit code of ``run``; mistakes, and errors of torch and CUDA whose cause is known, are told in words."""
    try:
        return run()
    except UserError as mistake:
        return say_mistake(mistake)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        from vla_ft.training.known_errors import explain

        known = explain(error)
        if known is None:
            raise
        return say_mistake(UserError(known))


def say_mistake(mistake: UserError) -> int:
    """Print a mistake, or leave it to the launcher, which says what several of its processes met once."""
    if not isinstance(mistake, EndedByPeer) and not tell_launcher(str(mistake)):
        print(f"vla-ft: {mistake}", file=sys.stderr, flush=True)
    return 2
