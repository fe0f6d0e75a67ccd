"""What the Docker engine of this host says of itself, as facts for the doctor."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import Any

from vla_ft.environment.facts import Engine, Facts, Image
from vla_ft.host import labels
from vla_ft.host.probing import answer


def with_engine(facts: Facts) -> Facts:
    """Facts with this host's engine asked, and the free space where it keeps its images."""
    engine = gather_engine()
    return replace(facts, engine=engine, disk_free_bytes={**facts.disk_free_bytes, **_free(engine.root)})


def _free(folder: str) -> dict[str, int]:
    """Free bytes at the engine's folder; nothing for an engine whose folder is on another machine."""
    remote = os.environ.get("DOCKER_HOST", "").startswith(("tcp:", "ssh:", "http"))
    try:
        return {folder: shutil.disk_usage(folder).free} if folder and not remote else {}
    except OSError:
        return {}


def gather_engine() -> Engine:
    """Ask the engine; never raises."""
    try:
        import docker
    except ImportError:
        return Engine("no sdk")
    # In a clone the folder docker/ is importable as an empty namespace, so a successful import proves nothing.
    if not hasattr(docker, "from_env"):
        return Engine("no sdk")
    try:
        client = docker.from_env(timeout=10)
    except (docker.errors.DockerException, OSError) as error:
        return Engine("unreachable", message=_short(error))
    try:
        return _describe(client.info(), _images(client))
    except (docker.errors.DockerException, OSError) as error:
        return Engine("unreachable", message=_short(error))
    finally:
        client.close()


def _describe(info: dict[str, Any], images: tuple[Image, ...]) -> Engine:
    devices = info.get("DiscoveredDevices") or []  # CDI, in engines from 28.2 on
    return Engine(
        state="ok",
        version=info.get("ServerVersion", ""),
        nvidia_runtime="nvidia" in (info.get("Runtimes") or {})
        or any(str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in devices),
        compose=_plugin("compose", "version", "--short"),
        buildx=_plugin("buildx", "version"),
        root=info.get("DockerRootDir", ""),
        users=mapped_users(info),
        images=images,
    )


def mapped_users(info: dict[str, Any]) -> str:
    """``Engine.users`` from the engine's own description, whose options read ``name=rootless`` or ``name=userns``."""
    options = {word for option in info.get("SecurityOptions") or [] for word in str(option).split(",")}
    return "rootless" if "name=rootless" in options else "remapped" if "name=userns" in options else ""


def _images(client: Any) -> tuple[Image, ...]:
    found = []
    for image in client.images.list(filters={"label": labels.ENVIRONMENT}):
        environment, lock = image.labels[labels.ENVIRONMENT], image.labels.get(labels.LOCK, "")
        found += [Image(tag, environment, lock) for tag in image.tags if labels.is_proved(tag)]
    return tuple(sorted(found, key=lambda one: one.tag))


def _plugin(name: str, *arguments: str) -> str | None:
    """Version of a plugin of the docker command, or None without it."""
    words = (answer(["docker", name, *arguments]) or "").split()
    return next((word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit()), None)


def _short(error: Exception) -> str:
    """The innermost reason in one line: the SDK wraps a refused socket three times."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    text = str(cause) or type(cause).__name__
    return json.dumps(text)[1:-1][:200]
