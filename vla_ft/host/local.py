"""Local environments: ``.venvs/<environment>``, made from the same lock as the image of that name.

A stamp is written last and names the lock that was installed. An environment with the right stamp is used as it is, one
without (half-made, or from an older lock) is made anew: virtual environments cannot be renamed into place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vla_ft.environment.locks import read_lock, write_layers
from vla_ft.environment.table import REPOSITORY, Environment
from vla_ft.errors import UserError
from vla_ft.host.interpreters import find_python
from vla_ft.host.wheel_folders import wheel_folders
from vla_ft.host.wheelhouse import find_files

VENVS = REPOSITORY / ".venvs"
STAMP = "vla-ft.json"

SOURCE_BUILD = ("env", "DS_ACCELERATOR=cpu", "DS_BUILD_OPS=0", "PIP_USE_PEP517=1")
"""DeepSpeed's build looks at neither this machine's card, whose toolkit need not be here, nor at a wish of the user's
shell to compile operators; and old and new pip build alike. The Dockerfile says the same.
"""

Run = Callable[[Sequence[str], Path], int]
"""Runs a command with its output going to a log file; returns the exit status."""


def say(text: str) -> None:
    """Print a line at once: what a child process prints next must come after it, in a pipe as well."""
    print(text, flush=True)


def run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command, appending it and everything that it prints to ``log``."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        return subprocess.run(list(command), stdout=file, stderr=subprocess.STDOUT).returncode


@dataclass(frozen=True)
class LocalEnvironment:
    """A virtual environment of one entry of the table."""

    environment: Environment
    root: Path = VENVS
    run: Run = run_logged
    echo: Callable[[str], None] = say

    @property
    def folder(self) -> Path:
        """The virtual environment."""
        return self.root / self.environment.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def bytecode(self) -> Path:
        """Where what runs in it keeps compiled modules, its own and the clone's."""
        return self.folder / "bytecode"

    @property
    def log(self) -> Path:
        """What pip said when it was made."""
        return self.root / f"{self.environment.name}.log"

    def ensure(self, wheelhouse: Path | None = None) -> Path:
        """Make the environment if it is not there or not from the present lock; returns its interpreter.

        Raises UserError when the platform, Python 3.11, torch's wheel or a package cannot be had.
        """
        with self._locked():
            wanted = self._wanted()
            if not self._stamped(wanted, ("lock", "repository", "folder")):
                self._make(wheelhouse)
            elif not self._stamped(wanted, ("project",)):
                self._install_project()
                self._write_stamp({**self._stamp(), **wanted})
        return self.python

    def add_extra(self, extra: str, wheelhouse: Path | None = None) -> Path:
        """Make the environment and install an add-on's lock into it, once for each version of that lock."""
        lock = self.environment.extra_lock(extra)
        self.ensure(wheelhouse)
        with self._locked():
            digest = _digest(lock)
            stamp = self._stamp()
            if stamp.get("extras", {}).get(extra) != digest:
                self._install(f"add-on '{extra}'", lock, wheelhouse)
                self._check()
                stamp["extras"] = {**stamp.get("extras", {}), extra: digest}
                self._write_stamp(stamp)
        return self.python

    def _make(self, wheelhouse: Path | None) -> None:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise UserError(
                f"The locks hold wheels for Linux on x86_64 only; this is {platform.system()} on {platform.machine()}."
            )
        base = find_python(self.environment.python)
        if self.folder.exists():
            self.echo(f"Making {self.folder} anew: it is unfinished or from an older lock.")
            shutil.rmtree(self.folder)
        self.log.unlink(missing_ok=True)
        self._step(f"Python {self.environment.python} in {self.folder}", [base, "-m", "venv", str(self.folder)])
        with tempfile.TemporaryDirectory(prefix="vla-ft-layers-") as layers:
            torch, cuda, stack, source = write_layers(self.environment.lock, Path(layers))
            self._install_torch(torch, wheelhouse)
            if cuda.stat().st_size:
                self._install("CUDA libraries", cuda, wheelhouse)
            self._install("stack", stack, wheelhouse)
            if source.stat().st_size:
                self._install("what is built from source", source, wheelhouse, build=True)
        self._install_project()
        self._write_stamp(self._wanted())

    def _install_project(self) -> None:
        # Setuptools comes from the lock, so nothing is fetched for the build either.
        project = ["--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY)]
        self._step("this project", self._pip("install", *project))
        self._check()

    def _install_torch(self, requirements: Path, wheelhouse: Path | None) -> None:
        """torch from a wheel folder, else from its own index where it has one, else from the default index."""
        name, index = f"torch {self.environment.torch}", self.environment.torch_index
        if index is None:
            self._install(name, requirements, wheelhouse)
            return
        # Asked for torch alone and not for long: where it is out of reach, every further try costs minutes.
        options = ["--index-url", index, "--retries", "1", "--timeout", "30"]
        remedy = (
            f"Put {self.environment.torch_wheel} with the lock's sha256 into a folder and name it with --wheelhouse "
            "DIR or PIP_FIND_LINKS."
        )
        self._install(name, requirements, wheelhouse, options, remedy)

    def _install(
        self,
        what: str,
        requirements: Path,
        wheelhouse: Path | None,
        index: Sequence[str] = (),
        remedy: str = "",
        build: bool = False,
    ) -> None:
        """Install exactly what a hashed requirements file lists; no index is asked for what lies in wheel folders.

        With ``build``, from source archives, with the setuptools and the torch that are installed already.
        """
        folders = wheel_folders([wheelhouse] if wheelhouse else [])
        pins = read_lock(requirements)
        here = find_files(pins, folders, self.echo)
        options = [word for folder in folders for word in ("--find-links", str(folder))]
        if len(here) == len(pins):
            what += f" from {', '.join(sorted({str(wheel.parent) for wheel in here}))}"
            options.append("--no-index")
        elif index:
            what += " from torch's own index"
            options += index
        # Without compiling: Python compiles what is imported, which is a small part of torch, when it is imported.
        command = ["install", "--require-hashes", "--no-deps", "--no-compile", *options, "-r", str(requirements)]
        if build:
            # pip would keep the wheel that it makes, and give what one torch wrote into it to the next environment.
            command += ["--no-binary", ":all:", "--no-build-isolation", "--no-cache-dir"]
        self._step(what, [*(SOURCE_BUILD if build else ()), *self._pip(*command)], remedy)

    def _check(self) -> None:
        self._step("check of what depends on what", self._pip("check"))

    def _pip(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]

    def _step(self, what: str, command: Sequence[str], remedy: str = "") -> None:
        start = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.run(command, self.log) != 0:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
            raise UserError(
                f"Environment '{self.environment.name}' could not be made; it failed at: {what}. {remedy}\n"
                f"The end of {self.log}:\n{tail}"
            )
        self.echo(f"  {what}: {time.monotonic() - start:.1f} s")

    def _wanted(self) -> dict[str, object]:
        """What a finished environment's stamp says. The paths are in it because an environment cannot be moved."""
        return {
            "lock": _digest(self.environment.lock),
            "project": _digest(REPOSITORY / "pyproject.toml"),
            "repository": str(REPOSITORY),
            "folder": str(self.folder),
        }

    def _stamp(self) -> dict[str, dict[str, str]]:
        try:
            found = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _stamped(self, wanted: dict[str, object], keys: Sequence[str]) -> bool:
        have = self._stamp()
        return self.python.exists() and all(have.get(key) == wanted[key] for key in keys)

    def _write_stamp(self, stamp: dict[str, object] | dict[str, dict[str, str]]) -> None:
        beside = self.folder / f"{STAMP}.new"
        beside.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, self.folder / STAMP)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes an environment; a second one waits and then finds it made."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f".{self.environment.name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.echo(f"Another process works on {self.folder}; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} is missing. Run from a whole clone of the repository.")
    return hashlib.sha256(path.read_bytes()).hexdigest()
