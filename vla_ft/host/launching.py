"""Where a task runs: which environment, and whether in its image or its local form. Decided once, and said aloud."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vla_ft.environment.facts import Engine, Facts, Image
from vla_ft.environment.selection import choose
from vla_ft.environment.table import REPOSITORY, Environment, Table
from vla_ft.errors import UserError
from vla_ft.host import labels
from vla_ft.host.jobs import Job
from vla_ft.host.local import LocalEnvironment, say


@dataclass(frozen=True)
class Place:
    """Where a task runs and why."""

    environment: Environment
    image: str | None
    """Tag of the image, or None for the local environment."""
    reason: str

    @property
    def sentence(self) -> str:
        """The line that is printed before anything runs."""
        where = f"image {self.image}" if self.image else "local environment"
        return f"{self.environment.name}, {where}: {self.reason}"


def decide(gpu: str, local: str, facts: Facts, table: Table) -> Place:
    """Choose environment and place.

    An image is used where an engine answers and holds one from the environment's present lock. Otherwise the local
    environment, which is made from the same lock, unless a card was named: then the missing image is a mistake to mend.
    ``local`` is a reason for the local environment in any case, or empty. Raises UserError for both kinds of mistake.
    """
    if gpu == "auto":
        choice = choose(facts, table)
        environment, why = choice.environment, choice.reason
    else:
        environment, why = table.environment_for(gpu), f"--gpu {gpu}"
    if local:
        return Place(environment, None, f"{why}; {local}")
    if facts.engine.state != "ok":
        return Place(environment, None, f"{why}; no Docker engine answers")
    image = current_image(facts.engine, environment)
    if image is None and gpu != "auto":
        raise UserError(
            f"No image of {environment.name} from the present lock is here. Make it with `invoke build --gpu {gpu}`, "
            "or add --local for the same environment without Docker."
        )
    if image is None:
        hint = f"no image from the present lock, `invoke build --gpu {environment.name}` makes one"
        return Place(environment, None, f"{why}; {hint}")
    return Place(environment, image, why)


def current_image(engine: Engine, environment: Environment) -> str | None:
    """Tag of an image that was built from the environment's present lock."""
    wanted = Image(labels.image_name(environment.name), environment.name, environment.lock_hash)
    return wanted.tag if wanted in engine.images else None


def run_local(
    job: Job,
    environment: Environment,
    wheelhouse: Path | None = None,
    run: Callable[..., int] = subprocess.call,
    echo: Callable[[str], None] = say,
) -> int:
    """Run a job in the local environment, made first if need be; returns its exit status."""
    local = LocalEnvironment(environment, echo=echo)
    python = local.add_extra(job.extra, wheelhouse) if job.extra else local.ensure(wheelhouse)
    command = job.command(str(python))
    echo(f"$ {shlex.join(command)}")
    environ = {**os.environ, "VLA_FT_ENVIRONMENT": environment.name}
    # Nothing is compiled when it is installed, so every process would compile torch again where Python is told to keep
    # no bytecode, as many images tell it: a third of a short run. It is kept out of the user's folders.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ.setdefault("PYTHONPYCACHEPREFIX", str(local.bytecode))
    if job.service is not None:
        # What compose.yaml promises to the same job in a container. The user's own word goes first.
        environ.setdefault("VLA_FT_DEVICE", environment.device)
    return run(command, env=environ, cwd=REPOSITORY if job.in_clone else None)
