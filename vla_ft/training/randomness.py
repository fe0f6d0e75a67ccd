"""The generators of one process: seeding, and their state as JSON, so that a run continues bit for bit."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int) -> None:
    """Seed this process's generators. Ranks differ, or every process would draw the same dropout masks."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint32)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def use_deterministic_kernels() -> None:
    """Ask torch for deterministic kernels; an operation that has none raises instead of varying."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the Python, NumPy and torch generators, and of the device's own where it is a card, in JSON types."""
    version, internal, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Inverse of ``random_state``. Call it after the data loader's iterator exists: making one draws numbers."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    internal = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**internal, "key": np.asarray(internal["key"], dtype=np.uint32)}})
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(_tensor(state["cuda"]), device)


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).clone()
