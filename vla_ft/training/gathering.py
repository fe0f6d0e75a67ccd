"""Writing full tensors from the shares of all processes, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from vla_ft.tensor_stream import Entry, TensorWriter
from vla_ft.training.engines import Engine

Item = tuple[Entry, Callable[[], Tensor | None]]
"""What will be written, and what makes it; the latter is collective and gives None off the main process."""


def gathered(engine: Engine, name: str, local: Tensor) -> Item:
    """The full tensor of a parameter's shares (weights, or something that is cut like them)."""
    piece = engine.pieces[name]
    return Entry(name, piece.shape, local.dtype), partial(engine.gather_ranges, local, piece.ranges)


def write_on_main(folder: Path, stem: str, items: Sequence[Item], engine: Engine) -> None:
    """Write a set of tensors; host memory holds one of them at a time. Collective.

    A disk that fills up is raised on the main process at the end: the others wait in the gathers that follow.
    """
    failure: OSError | None = None
    writer = None
    if engine.is_main:
        try:
            writer = TensorWriter(folder, stem, [entry for entry, _ in items])
            writer.begin()
        except OSError as error:
            failure = error
    for _, make in items:
        value = make()
        if writer is not None and value is not None and failure is None:
            try:
                writer.write(value)
            except OSError as error:
                failure = error
    if writer is not None:
        try:
            writer.finish() if failure is None else writer.abandon()
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure
