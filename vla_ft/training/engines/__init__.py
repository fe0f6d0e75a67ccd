"""Engines: the same model on one process, on copies, or on shards. ``Engine`` is the interface that all keep."""

from __future__ import annotations

import importlib
import os

from vla_ft.config import RunConfig
from vla_ft.devices import choose_device
from vla_ft.training.compatibility import Setup, refuse
from vla_ft.training.engines.base import Engine

__all__ = ["Engine", "asked_setup", "build_engine"]

_CLASSES = {
    "single": ("base", "Engine"),
    "ddp": ("ddp", "DdpEngine"),
    "fsdp2": ("sharded", "ShardedEngine"),
    "hsdp": ("sharded", "HybridEngine"),
    "zero1": ("zero", "Zero1Engine"),
    "zero2": ("zero", "Zero2Engine"),
    "zero3": ("zero", "Zero3Engine"),
}
"""Module and class by name; imported when chosen, for what they import is large."""


def asked_setup(config: RunConfig) -> Setup:
    """What ``config`` asks for on the processes that a launcher says are there."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return Setup.of(config, world, int(os.environ.get("LOCAL_WORLD_SIZE", str(world))))


def build_engine(config: RunConfig) -> Engine:
    """The engine of ``config``. Raises UserError, before any process group is joined, where fields do not fit."""
    setup = asked_setup(config)
    refuse(setup)
    module, name = _CLASSES[setup.engine]
    kind = getattr(importlib.import_module(f"vla_ft.training.engines.{module}"), name)
    engine: Engine = kind(config, choose_device(config.device))
    if engine.world_size != setup.world_size or engine.name != setup.engine:
        raise RuntimeError(f"asked for {setup.engine} on {setup.world_size}, got {engine.name} on {engine.world_size}")
    return engine
