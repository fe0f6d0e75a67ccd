"""Docker through its SDK: the engine, images, short checks inside an image, detached runs and their logs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vla_ft.errors import UserError, nearest
from vla_ft.host import labels
from vla_ft.host.engine import gather_engine, mapped_users
from vla_ft.host.probing import SECONDS, answer

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.images import Image

GRACE_SECONDS = 120
"""From SIGTERM to SIGKILL: longer than a checkpoint takes. The same as ``stop_grace_period`` in compose.yaml."""


def client() -> DockerClient:
    """A connection to the engine. Raises UserError when the SDK is missing or no engine answers."""
    import docker

    # Without the SDK this folder's own docker/ is imported as an empty namespace.
    if not hasattr(docker, "from_env"):
        raise UserError("The Docker SDK for Python is not installed. Run `pip install -e .` in the clone.")
    try:
        engine = docker.from_env()
        engine.ping()
    except docker.errors.DockerException as error:
        raise UserError(
            f"No Docker engine answers ({error}). Start it, or join the group that may use it; "
            "`invoke smoke --local` needs none."
        ) from error
    return engine


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag of an image's name; a colon before a slash is a registry's port, and no tag is ``latest``."""
    repository, _, tag = name.rpartition(":")
    return (repository, tag) if repository and "/" not in tag else (name, "latest")


def require_plugin(name: str) -> None:
    """Raise UserError unless ``docker NAME`` (buildx, compose) can be run."""
    if shutil.which("docker") is None:
        raise UserError("The command `docker` is not on PATH. Install Docker with its buildx and compose plugins.")
    if answer(["docker", name, "version"]) is None:
        raise UserError(
            f"`docker {name} version` fails here or does not answer within {SECONDS:.0f} s. Install Docker's {name} "
            "plugin, or look at what else this machine does."
        )


def image(name: str) -> Image | None:
    """An image that is here, or None."""
    import docker

    try:
        return client().images.get(name)
    except docker.errors.ImageNotFound:
        return None


def has_nvidia_runtime() -> bool:
    """Whether the engine says that it can hand cards to a container."""
    return gather_engine().nvidia_runtime


def is_rootless() -> bool:
    """Whether the engine runs without root, so that root in a container is the caller outside; no without an engine."""
    try:
        return mapped_users(client().info()) == "rootless"
    except UserError:
        return False


@dataclass(frozen=True)
class Finished:
    """A container that has ended."""

    exit_code: int
    output: str
    """Standard output."""
    errors: str
    """Standard error."""


def run_isolated(
    name: str,
    command: Sequence[str],
    *,
    user: str = "54321:54321",
    gpus: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> Finished:
    """Run a command in a fresh container: no network, read-only root, no capabilities, a user without a name.

    The arguments replace the image's entry point. Raises docker.errors.APIError when the container cannot start, and
    TimeoutError when it does not end within ``timeout`` seconds; either way it is removed.
    """
    import requests
    from docker.types import DeviceRequest

    container: Container = client().containers.create(
        name,
        entrypoint=list(command),
        command=[],
        user=user,
        environment=dict(environment or {}),
        init=True,
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "", "/home/trainer": "mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        device_requests=[DeviceRequest(driver="nvidia", count=-1, capabilities=[["gpu"]])] if gpus else None,
    )
    try:
        container.start()
        code = container.wait(timeout=timeout)["StatusCode"]
        output, errors = (container.logs(stdout=out, stderr=not out).decode(errors="replace") for out in (True, False))
        return Finished(code, output, errors)
    except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError) as error:
        # The SDK waits on an open connection: depending on its version, the timeout is one of these.
        raise TimeoutError(
            f"`{' '.join(command)}` in {name} did not end within {timeout:.0f} s. Look at what else the machine does, "
            "then try again."
        ) from error
    finally:
        container.remove(force=True, v=True)


def runs(everything: bool = False) -> list[Container]:
    """Detached runs, newest first: those that are alive, or all that have not been removed."""
    return client().containers.list(all=everything, filters={"label": labels.RUN})


def find_run(name: str | None) -> Container:
    """A detached run by name, or the newest. Raises UserError with the nearest name."""
    known = {str(one.labels[labels.RUN]): one for one in reversed(runs(everything=True))}
    if not known:
        raise UserError("There is no detached run. Start one with `invoke train --detach`.")
    if name is None:
        return list(known.values())[-1]
    if name not in known:
        raise UserError(f"There is no run '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    return known[name]


def stream_logs(container: Container, follow: bool, tail: int | str = "all") -> Iterator[str]:
    """What a container prints, in pieces as they come. Ends with the container, or at once without ``follow``."""
    for piece in container.logs(stream=True, follow=follow, tail=tail):
        yield piece.decode(errors="replace")


def stop_run(container: Container, grace: int = GRACE_SECONDS) -> int:
    """Ask a run to save and end (SIGTERM), kill it after ``grace`` seconds, and return its exit code. The logs stay."""
    container.stop(timeout=grace)
    return int(container.wait()["StatusCode"])


def remove_run(container: Container) -> None:
    """Remove an ended run's container with its anonymous volumes; its run folder stays."""
    container.remove(v=True)


def rename(source: str, target: str) -> Image:
    """Move the name ``source`` to ``target``; the image that had ``target`` goes unless something still uses it."""
    import docker

    images = client().images
    before = image(target)
    found = images.get(source)
    found.tag(*split_name(target))
    images.remove(source, noprune=True)
    if before is not None and before.id != found.id:
        # Containers or further names may hold the old one: then it stays.
        with contextlib.suppress(docker.errors.APIError):
            images.remove(before.id)
    return images.get(target)


def remove_image(name: str) -> None:
    """Remove an image's name, and the image with its last name; nothing happens where it is not here."""
    import docker

    with contextlib.suppress(docker.errors.ImageNotFound):
        client().images.remove(name)


def label(attributes: Mapping[str, Any], name: str) -> str:
    """A label from ``Image.attrs``, or an empty string."""
    return str((attributes.get("Config", {}).get("Labels") or {}).get(name, ""))
