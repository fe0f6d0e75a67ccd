"""A base image made on the spot, for sites that can pull none: Debian bookworm, Python 3.11, its headers, a C compiler.

Needs root and ``debootstrap``, which fetches from the machine's usual Debian mirror or from ``--mirror``. The image
holds what ``docker/install-system.sh`` would otherwise install, so builds on it ask no Debian mirror.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_ft.errors import UserError
from vla_ft.host import containers

TAG = "local/debian:bookworm"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv", "gcc", "libc6-dev", "libpython3-dev")
LEFT_OVER = ("var/cache/apt", "var/lib/apt/lists", "var/log")
"""Folders whose contents name the mirror or differ from build to build."""


def bootstrap_command(folder: Path, mirror: str | None) -> list[str]:
    """The ``debootstrap`` command that fills ``folder``."""
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(folder)]
    return [*words, mirror] if mirror else words


def make(tag: str = TAG, mirror: str | None = None, echo: Callable[[str], None] = print) -> str:
    """Make the base image and return its id.

    Raises UserError without root, debootstrap or an engine, and when packages cannot be fetched; nothing is left.
    """
    if os.geteuid() != 0:
        raise UserError("debootstrap needs root, because it makes a root file system. Run `sudo -E invoke base`.")
    if shutil.which("debootstrap") is None:
        raise UserError("debootstrap is not installed. Install your distribution's package of that name.")
    engine = containers.client()
    with tempfile.TemporaryDirectory(prefix="vla_ft-base-") as name:
        root = Path(name) / "root"
        words = bootstrap_command(root, mirror)
        echo(f"$ {' '.join(words)}")
        _run(words, root / "debootstrap" / "debootstrap.log")
        for left in LEFT_OVER:
            _empty(root / left)
        if mirror:
            # Its address may be private, and builds need no mirror.
            (root / "etc" / "apt" / "sources.list").unlink(missing_ok=True)
        archive = Path(name) / "root.tar"
        _run(["tar", "--create", "--sort=name", "--numeric-owner", "-C", str(root), "-f", str(archive), "."], None)
        echo(f"{archive.stat().st_size / 1e6:.0f} MB; importing as {tag}")
        repository, version = containers.split_name(tag)
        engine.api.import_image_from_file(str(archive), repository=repository, tag=version)
    found = containers.image(tag)
    if found is None:
        raise UserError(
            f"The engine imported no image {tag}. Look into the engine's log, then run `invoke base` again."
        )
    return str(found.id)


def _run(words: Sequence[str], log: Path | None) -> None:
    finished = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if finished.returncode == 0:
        return
    output = (finished.stdout + finished.stderr).strip().splitlines()[-5:]
    if log and log.is_file():
        output += log.read_text(errors="replace").splitlines()[-5:]
    raise UserError(
        f"`{words[0]}` failed with code {finished.returncode}. Its last lines:\n" + "\n".join(output) + "\n"
        "Give another package mirror with `invoke base --mirror ADDRESS`."
    )


def _empty(folder: Path) -> None:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
