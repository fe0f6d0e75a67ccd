"""Trained weights in the published form: a folder that the published code loads with ``from_pretrained``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.rdt.checkpoint import TOWER
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.published_config import FILE, published_values
from vla_ft.tensor_stream import Announced, TensorWriter


def write_published(folder: Path, tensors: Announced, facts: TrainedFacts) -> int:
    """Write ``config.json`` and ``model.safetensors`` into an empty folder, from tensors by our names, the image tower
    left out; returns how many went in. One tensor at a time is in memory. The file is one: the published code's loader
    knows no shards."""
    kept = [entry for entry in tensors.entries if not entry.name.startswith(TOWER)]
    writer = TensorWriter(folder, "model", kept, limit=2**63, metadata={"format": "pt"})
    writer.begin()
    for entry in kept:
        writer.write(tensors.read(entry))
    writer.finish()
    values = published_values(cast(Config, facts.config))
    (folder / FILE).write_text(json.dumps(values, indent=2, sort_keys=True))
    return len(kept)
