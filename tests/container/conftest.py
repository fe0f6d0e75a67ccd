"""The cpu image, built once a session by our own ``images.build``; everything here is skipped where that cannot be."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_support import USER, Compose

from vla_ft.environment.table import REPOSITORY, load_table
from vla_ft.errors import UserError
from vla_ft.host import base_image, containers, images


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips without an engine, buildx or compose; inside an image there is none."""
    try:
        containers.client()
        for plugin in ("buildx", "compose"):
            containers.require_plugin(plugin)
    except UserError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module", autouse=True)
def one_at_a_time() -> Iterator[None]:
    """Files of these tests share an engine and names of images: processes that divide the suite take turns."""
    with (Path(tempfile.gettempdir()) / f"vla_ft_container_tests.{os.getuid()}").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def base(engine: None) -> str | None:
    """The local base image where there is one, else the Dockerfile's own."""
    return base_image.TAG if containers.image(base_image.TAG) else None


@pytest.fixture(scope="session")
def cpu_image(base: str | None) -> images.Built:
    """The cpu image of this clone, under a name of its own: a minute when nothing is cached."""
    name = "vla_ft_test:cpu"  # the user's own vla_ft:cpu stays what it is
    try:
        return images.build(load_table().environment("cpu"), images.Options(base=base), name=name)
    except UserError as problem:
        if "cannot be pulled" in str(problem):
            pytest.skip(str(problem))
        raise


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A copy of what enters the build context, to be changed by a test."""
    copy = tmp_path / "clone"
    ignore = shutil.ignore_patterns("__pycache__", "*.whl", ".lock")
    for name in ("docker", "envs", "examples", "vla_ft", "tests"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy2(REPOSITORY / name, copy / name)
    return copy


@pytest.fixture
def compose(cpu_image: images.Built, tmp_path: Path) -> Iterator[Compose]:
    """Runs ``docker compose`` on the cpu image as ``USER``, with folders for data and runs under ``tmp_path``."""
    for name in ("datasets", "runs"):
        (tmp_path / name).mkdir()
        if os.getuid() == 0:
            os.chown(tmp_path / name, USER, USER)
    tmp_path.chmod(0o755)
    environ = {
        **os.environ,
        "COMPOSE_FILE": "compose.yaml",
        "COMPOSE_PROJECT_NAME": f"vla_ft_test_{uuid.uuid4().hex[:8]}",
        "VLA_FT_IMAGE": cpu_image.image,
        "VLA_FT_DEVICE": "cpu",
        "VLA_FT_UID": str(USER),
        "VLA_FT_GID": str(os.getgid() or USER),
        "VLA_FT_DATA": str(tmp_path / "datasets"),
        "VLA_FT_RUNS": str(tmp_path / "runs"),
    }

    def run(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", *words],
            cwd=REPOSITORY,
            env={**environ, **changes},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    yield run
    run("down", "--remove-orphans")
