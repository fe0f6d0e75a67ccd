"""Folders of wheels that take precedence over every index, for images and local environments alike."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_ft.errors import UserError


def wheel_folders(given: Sequence[str | Path] = ()) -> list[Path]:
    """``--wheelhouse`` folders, then those of pip's ``find-links`` (``PIP_FIND_LINKS`` or its configuration file).

    Raises UserError when a given folder does not exist.
    """
    for name in given:
        if not Path(name).is_dir():
            raise UserError(f"--wheelhouse {name} is no folder. Give a folder that holds .whl files.")
    names = [*map(str, given), *os.environ.get("PIP_FIND_LINKS", "").split(), *_configured()]
    folders = [Path(name).resolve() for name in names if "://" not in name and Path(name).is_dir()]
    return list(dict.fromkeys(folders))


def _configured() -> list[str]:
    """pip's own answer; nothing where the host tools were installed without pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    lines = re.findall(r"^(?::env:|[a-z]+)\.find-links='(.*)'$", listed, flags=re.MULTILINE)
    return [word for line in lines for word in line.replace("\\n", " ").split()]
