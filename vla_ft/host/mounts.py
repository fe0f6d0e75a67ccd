"""What a container sees of this machine: the folders of data and runs, and their names inside."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from vla_ft.errors import UserError

FOLDERS = {"VLA_FT_DATA": ("datasets", "/data"), "VLA_FT_RUNS": ("runs", "/runs")}
"""Variable of ``.env`` or the shell -> its default in the clone, and where compose.yaml mounts it."""
WRITABLE = "/runs"
"""The one of them that is not mounted read-only."""
PATH_KEYS = ("data.path", "output", "init.path", "init.base", "resume")
"""Keys of a run that hold paths."""


def host_folders(repository: Path, env: Mapping[str, str]) -> dict[Path, str]:
    """Mounted folders of this machine and their names inside; the shell's variables go before those of ``.env``."""
    return {
        (repository / (os.environ.get(name) or env.get(name) or default)).resolve(): inside
        for name, (default, inside) in FOLDERS.items()
    }


def inside(arguments: Sequence[str], folders: Mapping[Path, str]) -> list[str]:
    """``key=value`` words with paths of this machine replaced by what a container calls them.

    A value that names nothing here is left as it is: it may be a path inside already. Raises UserError for a file or
    folder of this machine that is in no mounted folder, and for an output that would vanish with the container.
    """
    return [_translate(word, folders) for word in arguments]


def _translate(word: str, folders: Mapping[Path, str]) -> str:
    key, _, value = word.partition("=")
    if key not in PATH_KEYS or value in ("mock", "auto", "never", "") or value.startswith("hub:"):
        return word
    path = Path(value).resolve()
    found = next(
        (f"{key}={name / path.relative_to(folder)}" for folder, name in _named(folders) if path.is_relative_to(folder)),
        None,
    )
    if key == "output":
        return _kept(word, found or word, folders)
    if found is None and path.exists():
        mounted = " or ".join(str(folder) for folder in folders)
        raise UserError(
            f"{word} is not in a folder that the container sees. Put it under {mounted}, point VLA_FT_DATA or "
            "VLA_FT_RUNS at its folder, or add --local."
        )
    return found or word


def _named(folders: Mapping[Path, str]) -> list[tuple[Path, PurePosixPath]]:
    return [(folder, PurePosixPath(name)) for folder, name in folders.items()]


def _kept(word: str, translated: str, folders: Mapping[Path, str]) -> str:
    """The translated output if the container may write there and the files stay when it is gone."""
    place = PurePosixPath(os.path.normpath(translated.partition("=")[2]))
    if not place.is_relative_to(WRITABLE):
        (runs,) = (folder for folder, name in folders.items() if name == WRITABLE)
        raise UserError(
            f"{word} is not in the folder that the container may write and that outlives it. Put it under {runs}, "
            "point VLA_FT_RUNS at its folder, or add --local."
        )
    return translated
