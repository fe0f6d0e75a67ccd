"""Finding the Python that an environment is locked for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

from vla_ft.errors import UserError
from vla_ft.host.probing import answer

_PROBE = "import sys, venv, ensurepip; print('{}.{}'.format(*sys.version_info))"


def find_python(version: str) -> str:
    """Path of a working CPython of a version (``'3.11'``) that can make virtual environments.

    This interpreter first, then every ``python3.11`` on the search path, then those that uv manages. Each is started:
    a version manager's stub may lie on the path and lead nowhere. Raises UserError with what was tried.
    """
    tried: list[str] = []
    for candidate in _candidates(version):
        if candidate in tried:
            continue
        tried.append(candidate)
        if works(candidate, version):
            return candidate
    seen = f" Tried: {', '.join(tried)}." if tried else ""
    raise UserError(
        f"Python {version} with venv was not found; the locks are made for it.{seen} Install it "
        f"(Debian: python{version} and python{version}-venv; anywhere: `uv python install {version}`)."
    )


def works(executable: str, version: str) -> bool:
    """Whether an executable starts, is of that version, and has ``venv`` and ``ensurepip``."""
    said = answer([executable, "-c", _PROBE], seconds=60)
    return said is not None and said.strip() == version


def _candidates(version: str) -> Iterator[str]:
    if sys.version_info[:2] == tuple(int(part) for part in version.split(".")):
        yield sys.executable
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, f"python{version}")
        if os.access(path, os.X_OK):
            yield path
    if uv := shutil.which("uv"):
        found = (answer([uv, "python", "find", "--offline", version]) or "").strip()
        if found:
            yield found
