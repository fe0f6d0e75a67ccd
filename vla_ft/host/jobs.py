"""What the tasks run: the one place that spells these command lines, for images and local environments alike."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from vla_ft.errors import UserError


@dataclass(frozen=True)
class Job:
    """A command inside an environment."""

    module: str
    """Run as ``python -m module``; an image's entry point is ``vla_ft`` already."""
    arguments: tuple[str, ...]
    service: str | None = None
    """The compose service that is this job inside an image, or None where there is none."""
    extra: str | None = None
    """Add-on lock that it needs."""
    in_clone: bool = True
    """Whether it runs in the clone's folder; otherwise where the caller stands, for the caller's relative paths."""

    def command(self, python: str) -> list[str]:
        """The command line for an interpreter."""
        return [python, "-m", self.module, *self.arguments]

    @property
    def service_arguments(self) -> tuple[str, ...]:
        """Arguments for its service, whose entry point holds the subcommand already."""
        return self.arguments[1:]


def smoke(overrides: Sequence[str] = ()) -> Job:
    """A short run of every policy on mock data."""
    return Job("vla_ft", ("smoke", *overrides), service="smoke")


def train(arguments: Sequence[str]) -> Job:
    """A training run; without arguments, the default recipe on mock data."""
    return Job("vla_ft", ("train", *arguments), service="train", in_clone=False)


def export(arguments: Sequence[str]) -> Job:
    """One file of weights from a checkpoint."""
    return Job("vla_ft", ("export", *arguments), in_clone=False)


def fetch(arguments: Sequence[str]) -> Job:
    """Published weights onto this machine; without arguments, the list of them."""
    return Job("vla_ft", ("fetch", *arguments), service="fetch", in_clone=False)


def plan(arguments: Sequence[str]) -> Job:
    """A memory forecast; it needs no card."""
    return Job("vla_ft", ("plan", *arguments), service="plan", in_clone=False)


def data(arguments: Sequence[str]) -> Job:
    """What is done to datasets: ``inspect``, ``check``, ``convert``, ``mock``."""
    return Job("vla_ft", ("data", *arguments), in_clone=False)


def recipe(arguments: Sequence[str]) -> Job:
    """A recipe made for a dataset."""
    return Job("vla_ft", ("recipe", *arguments), in_clone=False)


def record(arguments: Sequence[str]) -> Job:
    """Demonstrations from the simulator."""
    return Job("vla_ft", ("record", *arguments), extra="sim", in_clone=False)


def tests(arguments: Sequence[str] = ()) -> Job:
    """The test suite: the whole of it by a process per core, or what the arguments say, as pytest itself would."""
    return Job("pytest", tuple(arguments) or ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"))


def words(text: str, remainder: str = "") -> list[str]:
    """Arguments given as ``--args "..."`` and after ``--``. Raises UserError for an unclosed quote."""
    try:
        return shlex.split(text) + shlex.split(remainder)
    except ValueError as error:
        raise UserError(f"Cannot read the arguments {text or remainder!r}: {error}.") from error
