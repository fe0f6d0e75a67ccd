"""Work that may fail on one process and then ends all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vla_ft.errors import UserError
from vla_ft.training.engines import Engine

T = TypeVar("T")


def on_main(engine: Engine, make: Callable[[], T]) -> T:
    """Run ``make`` on the main process; every process gets its result or raises its UserError. Collective."""
    result: T | None = None
    error: str | None = None
    if engine.is_main:
        try:
            result = make()
        except UserError as mistake:
            error = str(mistake)
    result, error = engine.broadcast((result, error))
    if error is not None:
        raise UserError(error)
    return result  # type: ignore[return-value]


def on_all(engine: Engine, make: Callable[[], T]) -> T:
    """Run ``make``, which communicates with nobody, on every process; one's UserError ends all of them. Collective."""
    result: T | None = None
    error: str | None = None
    try:
        result = make()
    except UserError as mistake:
        error = str(mistake)
    engine.agree(error)
    return result  # type: ignore[return-value]
