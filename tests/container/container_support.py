"""What the container tests share: builds from a changed copy of the clone, hand-made wheels, a search in an image."""

from __future__ import annotations

import io
import os
import re
import secrets
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from vla_ft.environment.table import load_table
from vla_ft.host import images, wheelhouse
from vla_ft.host.wheel_folders import wheel_folders

USER = os.getuid() or 60123
"""Whom the containers run as: the caller, or for root somebody who has no name anywhere."""

Compose = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = {"ENVIRONMENT": "tiny"}


def cpu_arguments() -> dict[str, str]:
    """Build arguments of the cpu environment, as ``images.build`` passes them."""
    chosen = images.attention.decide(load_table().environment("cpu"), "auto", [], None)
    return images.arguments(load_table().environment("cpu"), load_table(), chosen, "unknown")


def build(
    context: Path,
    tag: str,
    base: str | None,
    arguments: dict[str, str],
    *,
    target: str | None = None,
    secrets: dict[str, Path] | None = None,
) -> str:
    """Build from a copy of the repository with the command of ``images``, and return what it printed."""
    words = images.command(tag, arguments, secrets or {}, base)
    words[3:3] = ["--target", target] if target else []
    environment = load_table(context / "envs").environment(arguments["ENVIRONMENT"]) if not target else None
    if environment is None:
        finished = subprocess.run(words, cwd=context, capture_output=True, text=True, check=False)
    else:
        folders, stage = wheel_folders(), context / "docker" / "wheelhouse"
        with wheelhouse.staged(environment, folders, stage=stage):
            finished = subprocess.run(words, cwd=context, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def steps(output: str) -> dict[str, bool]:
    """Steps of a plainly printed build and whether each came from the cache."""
    names = dict(re.findall(r"^#(\d+) (\[.*)$", output, re.MULTILINE))
    cached = set(re.findall(r"^#(\d+) CACHED$", output, re.MULTILINE))
    return {name: number in cached for number, name in names.items()}


def wheel(context: Path, name: str, layer: str = "", local: str = "") -> Path:
    """A pure-Python wheel of a version that never was before, staged for a layer: torch's for torch, else the stack's.

    ``local`` is a local version that stands in the file's name only.
    """
    version = f"0.{secrets.randbelow(10**15)}"
    layer = layer or ("torch" if name == "torch" else "stack")
    path = context / "docker" / "wheelhouse" / layer / f"{name}-{version}{local}-py3-none-any.whl"
    folder = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}_made_for_a_test.py", "")
        archive.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    return path


BACKEND = """
import os, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    import {needs}
    told = os.environ["DS_ACCELERATOR"] + " " + os.environ["DS_BUILD_OPS"]
    with zipfile.ZipFile(os.path.join(folder, "{stem}-py3-none-any.whl"), "w") as archive:
        archive.writestr("{name}_made_for_a_test.py", "told = " + repr(told))
        archive.writestr("{stem}.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        archive.writestr("{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("{stem}.dist-info/RECORD", "")
    return "{stem}-py3-none-any.whl"
"""
"""A build backend that needs nothing but what it is told to import."""


def source_archive(context: Path, name: str, needs: tuple[str, ...]) -> Path:
    """A source archive of a version that never was before, staged; its build imports ``needs``."""
    version = f"0.{secrets.randbelow(10**15)}"
    stem = f"{name}-{version}"
    path = context / "docker" / "wheelhouse" / "source" / f"{stem}.tar.gz"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(needs=", ".join(needs), name=name, version=version, stem=stem),
    }
    with tarfile.open(path, "w:gz") as archive:
        for file, text in files.items():
            entry = tarfile.TarInfo(f"{stem}/{file}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def write_lock(context: Path, *wheels: Path) -> None:
    """A lock of an environment ``tiny`` that holds just these files; other wheels are no longer staged."""
    for other in (context / "docker" / "wheelhouse").glob("*/*.whl"):
        if other.parent.name == "stack" and other not in wheels:
            other.rename(context / other.name)
    lines = []
    for path in wheels:
        if not path.exists():
            (context / path.name).rename(path)
        name, version = wheelhouse.project(path)
        lines.append(f"{name}=={version} --hash=sha256:{wheelhouse.sha256(path)}\n")
    folder = context / "envs" / "tiny"
    folder.mkdir(exist_ok=True)
    (folder / "requirements.lock").write_text("".join(lines))


def search(saved: Path, needles: tuple[bytes, ...]) -> dict[bytes, bool]:
    """Which byte strings occur in a saved image: configuration, history, every file and name of its layers."""
    overlap = max(map(len, needles)) - 1
    found = dict.fromkeys(needles, False)
    with tarfile.open(saved) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            tail = b""
            while file and (chunk := file.read(1 << 22)):
                for needle in needles:
                    found[needle] = found[needle] or needle in tail + chunk
                tail = chunk[-overlap:]
    return found
