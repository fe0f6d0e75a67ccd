"""The layout of a checkpoint folder and its manifest: what the trainer writes and everything else reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vla_ft.errors import UserError

FORMAT = 1
LATEST = "latest"
MANIFEST = "manifest.json"
WEIGHTS = "model"
AVERAGE = "ema"
OPTIMIZER = "optimizer"
"""Sets of tensors: ``NAME.safetensors``, or several files with ``NAME.safetensors.index.json`` (``tensor_stream``)."""
CONFIGURATION = "config.json"
DESCRIPTION = "description.json"
STATISTICS = "statistics.json"


def step_folder(step: int) -> str:
    """Name of the checkpoint after ``step`` updates."""
    return f"step_{step:08d}"


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder itself, or the latest one of a run folder. Raises UserError when there is none."""
    for folder in (path, path / "checkpoints"):
        if (folder / LATEST).is_file():
            return folder / (folder / LATEST).read_text().strip()
    if not path.is_dir():
        raise UserError(
            f"No checkpoint at {path}. Give a run folder, or a folder named step_... inside its checkpoints."
        )
    return path


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Hash every file of ``folder`` and write the manifest beside them."""
    files = {path.name: describe(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"format": FORMAT, **about, "files": files})


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest, without looking at the files that it lists. Raises UserError."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is no checkpoint: it has no {MANIFEST}.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"Checkpoint {path} is damaged: {MANIFEST} cannot be read ({error}).") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"Checkpoint {path} has format {manifest.get('format')}, this version reads {FORMAT}.")
    return manifest


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest and return the manifest. Raises UserError."""
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        seen = describe(file) if file.is_file() else "missing"
        if seen != expected:
            raise UserError(f"Checkpoint {path} is damaged: {name} is {seen}, its manifest says {expected}.")
    return manifest


def is_whole(path: Path) -> bool:
    """Whether every file of a checkpoint matches its manifest."""
    try:
        verify(path)
    except UserError:
        return False
    return True


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(value, indent=1))
