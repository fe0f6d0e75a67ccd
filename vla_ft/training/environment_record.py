"""What a run ran on: versions, image, cards. Kept with the run, so that a number can be traced to it."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

import torch

import vla_ft
from vla_ft.environment.table import load_table
from vla_ft.training.engines import Engine


def environment_record(engine: Engine) -> dict[str, Any]:
    """Plain JSON types; no host names, no user names."""
    name = os.environ.get("VLA_FT_ENVIRONMENT")  # set by images and by the host's local environments
    cuda = engine.device.type == "cuda"
    return {
        "vla_ft": vla_ft.__version__,
        "environment": name,
        "lock": load_table().environment(name).lock_hash if name else None,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "engine": engine.name,
        "world_size": engine.world_size,
        "device": torch.cuda.get_device_name(engine.device) if cuda else f"cpu ({os.cpu_count()} cores)",
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    """Versions by name. Each access to a name or version would parse the package's description again."""
    described = [distribution.metadata for distribution in metadata.distributions()]
    return {one["Name"]: one["Version"] for one in sorted(described, key=lambda one: one["Name"].lower())}
