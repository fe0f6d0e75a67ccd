"""Trained weights in the published form: a folder that the published code loads with ``from_pretrained``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from safetensors.torch import save_file
from torch import Tensor

from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.rdt.checkpoint import TOWER
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.published_config import FILE, published_values


def write_published(folder: Path, tensors: Iterable[tuple[str, Tensor]], facts: TrainedFacts) -> int:
    """Write ``config.json`` and ``model.safetensors`` into an empty folder, from tensors by our names, the image tower
    left out; returns how many went in. Holds the weights in memory while it writes."""
    kept = {name: value.contiguous() for name, value in tensors if not name.startswith(TOWER)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    values = published_values(cast(Config, facts.config))
    (folder / FILE).write_text(json.dumps(values, indent=2, sort_keys=True))
    return len(kept)
