"""Shards of several processes in one: torch's ``fake`` process group, whose collectives send nothing and copy nothing.

What is left is what torch and the engines allocate themselves: gloo copies what it reduces and lets go of it when its
threads get to it, which no card does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from vla_ft.config import RunConfig
from vla_ft.training.engines import process_group, sharded


@contextlib.contextmanager
def silent_engine(config: RunConfig, world: int) -> Iterator[sharded.ShardedEngine]:
    """The sharded engine of ``config`` as the first of ``world`` processes, the others being nowhere. CPU."""
    kind = {"fsdp2": sharded.ShardedEngine, "hsdp": sharded.HybridEngine}[config.engine]

    class Silent(kind):  # type: ignore[misc, valid-type]
        def mean(self, values: Tensor) -> Tensor:
            return torch.zeros_like(values)  # weights that nobody sent are whatever was in memory

        def sum(self, values: Tensor) -> Tensor:
            return torch.zeros_like(values)

        def _total_norm(self, norm: Tensor) -> Tensor:
            return torch.zeros_like(norm)

    def join(device: torch.device) -> None:
        dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_group, "join_group", join)
        patch.setenv("WORLD_SIZE", str(world))
        patch.setenv("LOCAL_WORLD_SIZE", str(world))
        engine = Silent(config, torch.device("cpu"))
        try:
            yield engine
        finally:
            engine.close()
