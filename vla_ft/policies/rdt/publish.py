"""Trained weights in the published form: a folder that the published code loads with ``from_pretrained``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.policies.rdt.checkpoint import TOWER
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.published_config import FILE, published_values


def write_published(tensors: Iterable[tuple[str, Tensor]], config: Config, folder: Path) -> Path:
    """Write ``config.json`` and ``model.safetensors`` from tensors by our names, the image tower left out.

    The folder appears whole or not at all. Holds the weights in memory while it writes. Raises UserError when the
    folder exists or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already. Remove it, or name another folder.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        kept = {name: value.contiguous() for name, value in tensors if not name.startswith(TOWER)}
        save_file(kept, unfinished / "model.safetensors", metadata={"format": "pt"})
        (unfinished / FILE).write_text(json.dumps(published_values(config), indent=2, sort_keys=True))
        os.rename(unfinished, folder)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error}. Free space, or name another folder.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
