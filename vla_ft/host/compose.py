"""What compose.yaml is told through ``.env``, and its services as commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_ft.environment.table import REPOSITORY, Environment
from vla_ft.errors import UserError
from vla_ft.host import containers, images, labels, mounts

GPU_FILE = "docker/compose.gpu.yaml"
MAIN_FILE = "compose.yaml"
NOBODY_IN_PARTICULAR = 1000
"""The image's own user, for callers who are root: a container never runs as the machine's root."""


@dataclass(frozen=True)
class Caller:
    """Whom containers run as, and so who owns what they write."""

    uid: int
    gid: int


def caller(environ: Mapping[str, str] = os.environ, *, rootless: bool | None = None) -> Caller:
    """The user who called, also through sudo; for root itself the image's user.

    On a rootless engine the container's root is the caller, and every other number is nobody who owns the folders.
    ``rootless`` None: the engine is asked.
    """
    if containers.is_rootless() if rootless is None else rootless:
        return Caller(0, 0)
    uid, gid = os.getuid(), os.getgid()
    if uid == 0 and environ.get("SUDO_UID", "0") != "0":
        uid, gid = int(environ["SUDO_UID"]), int(environ["SUDO_GID"])
    if uid == 0:
        uid = gid = NOBODY_IN_PARTICULAR
    return Caller(uid, gid)


def settings(environment: Environment, who: Caller, compose_files: str = "") -> dict[str, str]:
    """Lines of ``.env`` for an environment. Compose files of the user's own in ``compose_files`` are kept."""
    own = [name for name in compose_files.split(":") if name and name not in (MAIN_FILE, GPU_FILE)]
    files = [MAIN_FILE, *([GPU_FILE] if environment.cuda else []), *own]
    return {
        "VLA_FT_IMAGE": labels.image_name(environment.name),
        "VLA_FT_DEVICE": environment.device,
        "VLA_FT_UID": str(who.uid),
        "VLA_FT_GID": str(who.gid),
        "COMPOSE_FILE": ":".join(files),
    }


def read_env(path: Path) -> dict[str, str]:
    """Values of a ``.env`` file; quotes around a value are dropped. Empty when the file is missing."""
    if not path.is_file():
        return {}
    found = re.findall(r"^\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: value.strip("'\"") for name, value in found}


def merged(text: str, values: Mapping[str, str]) -> str:
    """``.env`` with some values set: their lines are replaced where they stand, new ones follow, all others stay."""
    left = dict(values)
    lines = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:export\s+)?(\w+)\s*=", line)
        if match and match[1] in values:
            if match[1] in left:
                lines.append(f"{match[1]}={left.pop(match[1])}")
            continue
        lines.append(line)
    lines += [f"{name}={value}" for name, value in left.items()]
    return "\n".join(lines) + "\n"


def use(environment: Environment, repository: Path = REPOSITORY) -> dict[str, str]:
    """Point compose at an environment's image: write ``.env``, make the mounted folders. Returns what was set."""
    path = repository / ".env"
    before = read_env(path)
    values = settings(environment, caller(), before.get("COMPOSE_FILE", ""))
    _write_env(path, values)
    prepare_folders(repository, Caller(int(values["VLA_FT_UID"]), int(values["VLA_FT_GID"])), before)
    return values


def _write_env(path: Path, values: Mapping[str, str]) -> None:
    """Replace ``.env`` in one step; it keeps its rights and its owner, since it may hold the user's tokens."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    beside = path.with_name(".env.new")
    beside.touch(mode=0o600)
    beside.write_text(merged(text, values), encoding="utf-8")
    if path.is_file():
        shutil.copymode(path, beside)
    owner = path if path.is_file() else path.parent
    if os.getuid() == 0:
        os.chown(beside, owner.stat().st_uid, owner.stat().st_gid)
    beside.replace(path)


def prepare_folders(repository: Path, who: Caller, env: Mapping[str, str]) -> None:
    """Make the folders for data and runs where they are missing, owned by whom the containers run as."""
    for folder in mounts.host_folders(repository, env):
        folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0 and folder.stat().st_uid == 0:
            os.chown(folder, who.uid, who.gid)


def require_image(environment: Environment, echo: Callable[[str], None] = print) -> None:
    """Raise UserError unless the environment's image is here and of the present lock.

    The one rule for images of older locks: who names an image, or cannot do without one (shell, detached runs), is told
    to renew it; ``--gpu auto`` goes to the local environment instead (``launching.decide``). An older source is named.
    """
    name = labels.image_name(environment.name)
    found = containers.image(name)
    if found is None:
        raise UserError(f"Image {name} is not here. Make it with `invoke build --gpu {environment.name}`.")
    renew = f"`invoke build --gpu {environment.name}` renews it."
    lock = containers.label(found.attrs, labels.LOCK)
    if lock != environment.lock_hash:
        raise UserError(
            f"{name} was built from lock {lock or 'unknown'}, the clone's is {environment.lock_hash}. {renew}"
        )
    if containers.label(found.attrs, labels.SOURCE) != images.source_hash():
        echo(f"{name} holds another source than the clone: {renew} That takes seconds.")


def overrides(environment: Environment, repository: Path = REPOSITORY) -> dict[str, str]:
    """Variables for one command with an environment; they go before those of the shell and of ``.env``.

    Compose files of the user's own stay: those in the shell's COMPOSE_FILE, or in that of ``.env`` where it is not set.
    """
    env = read_env(repository / ".env")
    return settings(environment, caller(), os.environ.get("COMPOSE_FILE") or env.get("COMPOSE_FILE", ""))


def service_command(
    service: str, arguments: Sequence[str], *, detached_name: str | None = None, terminal: bool | None = None
) -> list[str]:
    """``docker compose run`` for a service; with ``detached_name`` it returns at once and the container stays."""
    words = ["docker", "compose", "run"]
    if detached_name:
        words += ["--detach", "--name", f"vla_ft-{detached_name}", "--label", f"{labels.RUN}={detached_name}"]
    else:
        words += ["--rm"]
        if not (sys.stdout.isatty() if terminal is None else terminal):
            words += ["--no-TTY"]
    return [*words, service, *arguments]


def run_detached(environment: Environment, arguments: Sequence[str], name: str = "", local: bool = False) -> str:
    """Start a training run that outlives the caller, and return its name (the time when none is given).

    Raises UserError for ``local``, for a name that is taken or that Docker refuses, and as ``run_service`` does.
    """
    if local:
        raise UserError("--detach runs in a container, --local in none. Leave one of them out.")
    name = name or time.strftime("%Y%m%d-%H%M%S")
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", name):
        raise UserError(f"'{name}' cannot name a run. Use letters, digits, dots and dashes.")
    if name in {one.labels[labels.RUN] for one in containers.runs(everything=True)}:
        raise UserError(
            f"There is a run '{name}' already. `invoke stop --name {name}` removes it; or take another name."
        )
    code = run_service(environment, "train", arguments, detached_name=name)
    if code:
        for run in containers.runs(everything=True):
            if run.labels[labels.RUN] == name:
                run.remove(force=True, v=True)
        raise UserError(f"The run did not start: `docker compose` ended with code {code}; its reason is above.")
    return name


def run_service(
    environment: Environment,
    service: str,
    arguments: Sequence[str] = (),
    *,
    detached_name: str | None = None,
    echo: Callable[[str], None] = print,
) -> int:
    """Run a service with an environment's image and return its exit code.

    Raises UserError without an engine, compose or the image.
    """
    containers.require_plugin("compose")
    require_image(environment, echo)
    env = read_env(REPOSITORY / ".env")
    prepare_folders(REPOSITORY, caller(), env)
    translated = mounts.inside(arguments, mounts.host_folders(REPOSITORY, env))
    words = service_command(service, translated, detached_name=detached_name)
    finished = subprocess.run(words, cwd=REPOSITORY, env={**os.environ, **overrides(environment)}, check=False)
    if finished.returncode and environment.cuda and not containers.has_nvidia_runtime():
        # Not checked beforehand: some engines hand over cards without naming the runtime.
        echo("This engine names no NVIDIA runtime, without which a container gets no card. `invoke doctor` says more.")
    return finished.returncode
