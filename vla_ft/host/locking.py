"""Making locks: ``invoke lock``. One resolution for each environment, all of them agreeing on what they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vla_ft.environment.locks import FROM_SOURCE, Pin, changes, parse_lock, read_lock, split
from vla_ft.environment.table import Environment, Table
from vla_ft.errors import UserError
from vla_ft.host.shadow_index import has_shadow, shadow_index

PLATFORM = "x86_64-manylinux_2_28"
"""What every lock is for, wherever it is made: the base image's and torch's own floor (glibc 2.28)."""


@dataclass(frozen=True)
class Refreshed:
    """A lock that was made again."""

    lock: Path
    changes: tuple[str, ...]
    """One line a package (``vla_ft.environment.locks.changes``); empty when nothing moved."""


def refresh(table: Table, names: Iterable[str] = (), upgrade: bool = False) -> list[Refreshed]:
    """Make the locks of the named environments again (all without names), and their add-ons.

    A pin that still fits stays, unless ``upgrade``. Environments that are not named constrain those that are, so
    shared packages keep one version everywhere: to move them, upgrade all at once. Raises UserError, leaving every
    lock as it was that could not be made.
    """
    chosen = [table.environment(name) for name in names] or list(table.environments)
    agreed: dict[str, str] = {}
    for other in table.environments:
        if other not in chosen and other.lock.is_file():
            agreed |= shared_versions(other)
    results = []
    for environment in chosen:
        results.append(_refresh_lock(environment, agreed, upgrade))
        agreed |= shared_versions(environment)
        results += [_refresh_extra(environment, extra, upgrade) for extra in environment.extras]
    return results


def shared_versions(environment: Environment) -> dict[str, str]:
    """Versions that an environment's lock pins, without torch and CUDA."""
    layers = split(read_lock(environment.lock))
    return {pin.name: pin.version for pin in (*layers.stack, *layers.source)}


def _refresh_lock(environment: Environment, agreed: dict[str, str], upgrade: bool) -> Refreshed:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vla-ft-lock-")))
        torch = folder / "torch.in"
        torch.write_text(f"torch=={environment.torch}\n", encoding="utf-8")
        index = stack.enter_context(shadow_index(environment)) if has_shadow(environment) else None
        inputs = [environment.folder / "requirements.in", torch]
        text = _compile(environment, inputs, environment.lock, agreed, upgrade, folder, index)
    _check_torch(environment, parse_lock(text, environment.lock.name))
    return _replace(environment.lock, text)


def _refresh_extra(environment: Environment, extra: str, upgrade: bool) -> Refreshed:
    """An add-on's lock: what it needs beyond the base lock, at versions that the base lock admits."""
    base = {pin.name: pin.version for pin in read_lock(environment.lock)}
    path = environment.extra_lock(extra)
    with tempfile.TemporaryDirectory(prefix="vla-ft-lock-") as folder:
        inputs = [environment.folder / f"{extra}.in"]
        text = _compile(environment, inputs, path, base, upgrade, Path(folder), None)
    pins = [pin for pin in parse_lock(text, path.name) if pin.name not in base]
    return _replace(path, "".join(pin.text for pin in pins))


def _compile(
    environment: Environment,
    inputs: list[Path],
    lock: Path,
    agreed: dict[str, str],
    upgrade: bool,
    folder: Path,
    index: str | None,
) -> str:
    """Text of a new lock, made by uv in a folder of its own."""
    output = folder / "out.lock"
    if lock.is_file() and not upgrade:
        shutil.copyfile(lock, output)  # uv keeps the pins of an output that is there
    constraints = folder / "agreed.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in agreed.items()), encoding="utf-8")
    command = [_uv(), "pip", "compile", *map(str, inputs), "--output-file", str(output)]
    command += ["--constraint", str(constraints), "--generate-hashes", "--quiet", "--only-binary", ":all:"]
    for name in sorted(FROM_SOURCE):
        command += ["--no-binary", name]
    command += ["--python-version", environment.python, "--python-platform", PLATFORM, "--no-header", "--no-annotate"]
    if index:
        command += ["--index", index]
    if upgrade:
        command.append("--upgrade")
    done = subprocess.run(command, capture_output=True, text=True, env=_environ())
    if done.returncode != 0:
        raise UserError(f"uv could not resolve {lock.name} of '{environment.name}':\n{done.stderr.strip()}")
    return output.read_text(encoding="utf-8")


def _uv() -> str:
    """Path of uv: beside this interpreter (``pip install -e .[lock]``) or on the search path."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise UserError("Making locks needs uv, which is not installed. Run `pip install -e .[lock]`.")
    return found


def _environ() -> dict[str, str]:
    """This process's environment, with loopback kept away from any proxy."""
    environ = dict(os.environ)
    for key in ("no_proxy", "NO_PROXY"):
        environ[key] = ",".join(filter(None, [environ.get(key), "127.0.0.1"]))
    return environ


def _check_torch(environment: Environment, pins: list[Pin]) -> None:
    """The lock holds the torch file of environment.toml, by version and hash."""
    torch = next((pin for pin in pins if pin.name == "torch"), None)
    if torch is None or torch.version != environment.torch or environment.torch_sha256 not in torch.hashes:
        seen = f"{torch.version} without that hash" if torch else "no torch"
        raise UserError(
            f"The new lock of '{environment.name}' holds {seen}; environment.toml pins {environment.torch} with sha256 "
            f"{environment.torch_sha256}. If torch was meant to move, write its wheel's hash there first."
        )


def _replace(path: Path, text: str) -> Refreshed:
    """Put a lock in place whole, and tell what it changes. Raises UserError when it would hold an address."""
    if "://" in text:
        raise UserError(f"The new {path.name} holds an address, which a lock must not. Look at its .in file.")
    old = read_lock(path) if path.is_file() else []
    found = changes(old, parse_lock(text, path.name))
    if not found and old:
        return Refreshed(path, ())
    beside = path.with_suffix(".lock.new")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"Cannot write {path}: {error.strerror}. The old lock is untouched.") from error
    return Refreshed(path, tuple(found))
