"""Tables for the terminal: the doctor's findings, and the cards with their environments."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from vla_ft.environment.checks.base import Level
from vla_ft.environment.doctor import Result
from vla_ft.environment.table import Table

_SIGNS = {Level.OK: "[green]ok[/]", Level.WARN: "[yellow]warn[/]", Level.ERROR: "[bold red]error[/]"}


def _console() -> Console:
    """As wide as the terminal; into a pipe or a file, wide enough for whole lines, which grep and people can read."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def print_findings(results: Sequence[Result], console: Console | None = None) -> None:
    """The doctor's findings, a row each, and a line that counts them."""
    grid = Grid(show_lines=False, expand=False)
    for heading in ("", "check", "finding", "what to do"):
        grid.add_column(heading, overflow="fold")
    counts = dict.fromkeys(Level, 0)
    for result in results:
        for finding in result.findings:
            counts[finding.level] += 1
            grid.add_row(_SIGNS[finding.level], result.check.name, escape(finding.text), escape(finding.remedy))
    console = console or _console()
    console.print(grid)
    console.print(f"{counts[Level.OK]} ok, {counts[Level.WARN]} warnings, {counts[Level.ERROR]} errors")


def print_cards(table: Table, console: Console | None = None) -> None:
    """Every card with its environment, and what could not be checked of each environment."""
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for heading in ("card", "also", "sm", "GiB", "env", "CUDA", "torch", "driver from"):
        # Only the further names may be broken: what is typed and what is compared stands whole in any terminal.
        grid.add_column(heading, overflow="fold", no_wrap=heading != "also")
    for card in table.cards:
        environment = table.environment(card.environment)
        driver = environment.driver_needed(card.generation) or ""
        row = [card.name, " ".join(card.aliases), card.sm, f"{card.memory_gib:g}", environment.name]
        grid.add_row(*row, environment.cuda or "", environment.torch, driver)
    console = console or _console()
    console.print(grid)
    for environment in table.environments:
        for entry in environment.unverified:
            console.print(f"[yellow]not checked[/] {environment.name}: {escape(entry.what)} ({escape(entry.source)})")
