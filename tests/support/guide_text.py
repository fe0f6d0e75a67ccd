"""The ACT guide as a machine reads it: its code blocks, its commands, and the table of what is typed instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT.parent / "shared" / "mission" / "act-guide.md"
"""Not part of the repository: tests of it are skipped where it is missing."""
TABLE = ROOT / "tests" / "examples" / "guide_substitutions.toml"


def blocks(language: str) -> list[str]:
    """The guide's code blocks of a language; ``""`` for those without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [body for seen, body in found if seen == language]


def commands(block: str) -> list[str]:
    """The command lines of a shell block: continued lines joined, comments left out."""
    joined = re.sub(r"\s*\\\n\s*", " ", block)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def inline_code() -> list[str]:
    """Words in single backquotes."""
    text = re.sub(r"^```.*?^```", "", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def committed_commands() -> list[str]:
    """Every shell command of the guide, from the repository: for where the guide itself is not."""
    return list(tomllib.loads(TABLE.read_text(encoding="utf-8"))["commands"])


@dataclass
class Substitutions:
    """The committed table. ``used`` remembers which rows were needed."""

    on_card: bool
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
        self.lines, self.pieces = (self._rows(table[kind]) for kind in ("line", "piece"))
        self.pieces.sort(key=lambda row: -len(str(row["documented"])))

    def _rows(self, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        if not self.on_card:
            return rows
        own = [{**row, "replacement": row["card_replacement"]} for row in rows if "card_replacement" in row]
        return own + [row for row in rows if row.get("card")]

    def typed(self, command: str, size: Sequence[str]) -> str:
        """What is typed for a documented command; empty when nothing is. ``size``: ``<tiny>`` and ``<short>``."""
        for row in self.lines:
            if row["documented"] == command:
                self.used.add(command)
                return str(row["replacement"])
        for row in self.pieces:
            documented = str(row["documented"])
            if documented in command:
                self.used.add(documented)
                command = command.replace(documented, str(row["replacement"]))
        return command.replace("<tiny>", " ".join(size)).replace("<short>", " ".join(size))

    def stale(self) -> Iterator[str]:
        """Rows that no line of the guide needed."""
        return (str(row["documented"]) for row in (*self.lines, *self.pieces) if row["documented"] not in self.used)
