"""Wheels (and source archives of what has none) from local folders, staged into the build context for one build.

BuildKit inside Docker 20.10 has no named build contexts, so wheels have to lie inside the repository while an image
is built: ``docker/wheelhouse/<layer>/``, ignored by git, one folder a layer so that a wheel touches its own layer only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vla_ft.environment.locks import FROM_SOURCE, Pin, normalise, read_lock, split
from vla_ft.environment.locks import LAYERS as LOCKED
from vla_ft.environment.table import REPOSITORY, Environment, FlashAttention
from vla_ft.errors import UserError

STAGE = REPOSITORY / "docker" / "wheelhouse"
LAYERS = (*LOCKED, "flash-attn")
PATTERNS = ("*.whl", "*.tar.gz")


@dataclass
class Staged:
    """What a build finds in its wheelhouse, by layer."""

    wheels: dict[str, list[Path]] = field(default_factory=lambda: {layer: [] for layer in LAYERS})
    """Files in their own folders, not the staged copies."""


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def find_files(pins: Sequence[Pin], folders: Sequence[Path], echo: Callable[[str], None]) -> list[Path]:
    """Files in ``folders`` that a lock admits; one of a locked version but of another content is named and left.

    These are wheels, and for packages that publish none (``FROM_SOURCE``) their source archives.
    """
    wanted = {(pin.name, pin.version): pin for pin in pins}
    found: dict[tuple[str, str], Path] = {}
    for path in (path for folder in folders for path in _packages(folder)):
        key = project(path)
        if key not in wanted or key in found or (key[0] in FROM_SOURCE) == (path.suffix == ".whl"):
            continue
        if sha256(path) in wanted[key].hashes:
            found[key] = path
        else:
            echo(f"{path} is not used: its sha256 is not in the lock.")
    return list(found.values())


def project(path: Path) -> tuple[str, str]:
    """Normalised name and version of a wheel or a source archive, from its file name."""
    if path.suffix == ".whl":
        name, version, *_ = path.name.split("-")
    else:
        name, _, version = path.name.removesuffix(".tar.gz").rpartition("-")
    return normalise(name), version.replace("%2B", "+")


def find_flash_attention(wheel: FlashAttention, folders: Sequence[Path]) -> Path | None:
    """The pinned flash-attn wheel in a folder. Raises UserError when a file of its name has another content."""
    name = file_name(wheel)
    for path in (folder / name for folder in folders):
        if not path.is_file():
            continue
        found = sha256(path)
        if found != wheel.sha256:
            raise UserError(
                f"{path} has sha256 {found}; environment.toml pins {wheel.sha256}. Remove the file or fetch it again."
            )
        return path
    return None


def file_name(wheel: FlashAttention) -> str:
    """File name of the pinned flash-attn wheel, as pip reads it."""
    return wheel.url.rsplit("/", 1)[1].replace("%2B", "+")


@contextmanager
def staged(
    environment: Environment,
    folders: Sequence[Path],
    flash_attention: Path | None = None,
    *,
    stage: Path = STAGE,
    echo: Callable[[str], None] = print,
) -> Iterator[Staged]:
    """Put the wheels of one environment where its build looks for them, and take them away afterwards.

    Two builds in one clone would see each other's wheels, so the second waits.
    """
    layers = split(read_lock(environment.lock))
    result = Staged()
    if folders:
        for layer in LOCKED:
            result.wheels[layer] = find_files(getattr(layers, layer), folders, echo)
    if flash_attention:
        result.wheels["flash-attn"] = [flash_attention]
    for layer in LAYERS:
        (stage / layer).mkdir(parents=True, exist_ok=True)
    with (stage / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo("Another build runs in this clone; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _clear(stage)
            for layer, wheels in result.wheels.items():
                for wheel in wheels:
                    _place(wheel, stage / layer / wheel.name)
            yield result
        finally:
            _clear(stage)


def _place(wheel: Path, target: Path) -> None:
    """Hard link, or a copy across file systems. Either keeps the time stamp, by which BuildKit knows the file again."""
    try:
        os.link(wheel, target)
    except OSError:
        shutil.copy2(wheel, target)


def _clear(stage: Path) -> None:
    for layer in LAYERS:
        for path in _packages(stage / layer):
            path.unlink()


def _packages(folder: Path) -> list[Path]:
    return [path for pattern in PATTERNS for path in sorted(folder.glob(pattern))]
