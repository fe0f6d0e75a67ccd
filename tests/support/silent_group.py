"""Shards of several processes in one: torch's ``fake`` process group, whose collectives send nothing and copy nothing.

What is left is what torch and the engines allocate themselves: gloo copies what it reduces and lets go of it when its
threads get to it, which no card does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from vla_ft.config import RunConfig, load_run_config
from vla_ft.planning.forecast import compute_of
from vla_ft.planning.imagined import describe
from vla_ft.planning.measurement import measure_step
from vla_ft.planning.overlay import Peak, moments
from vla_ft.planning.rehearsal import rehearse
from vla_ft.training import engines
from vla_ft.training.compatibility import SHARDED, Setup
from vla_ft.training.engines import process_group

SMALL = (
    "recipe=act-mock", "device=cpu", "data.mock.image_size=[64,96]", "data.mock.cameras=[a,b]", "batch.per_device=4",
    "model.dropout=0.1",
)  # fmt: skip
CASES = {
    "fp32": (2, "engine=fsdp2"),
    "bf16 weights": (2, "engine=fsdp2,precision=bf16_kahan,batch.per_device=1"),
    "two micro-batches, average": (2, "engine=fsdp2,ema.decay=0.9,batch.accumulation=2"),
    "two micro-batches, bf16": (2, "engine=fsdp2,precision=bf16,batch.accumulation=2,batch.per_device=1"),
    "copies of shards": (4, "engine=hsdp,shard_group=2"),
    "offload, which moves nothing here": (2, "engine=fsdp2,offload=all,batch.per_device=1"),
}
NIGHTLY = {
    "bf16 autocast": (2, "engine=fsdp2,precision=bf16"),
    "frozen trunk": (2, "engine=fsdp2,freeze=[backbone]"),
    "recomputed blocks": (2, "engine=fsdp2,activation_checkpointing=true,batch.per_device=16"),
    "four": (4, "engine=fsdp2,batch.per_device=1"),
    "three micro-batches": (2, "engine=fsdp2,batch.accumulation=3"),
    "copies of shards, bf16 weights": (4, "engine=hsdp,shard_group=2,precision=bf16_stochastic,batch.per_device=1"),
    "copies of shards, two micro-batches": (4, "engine=hsdp,shard_group=2,precision=bf16,batch.accumulation=2"),
}
ZERO = {
    "ZeRO-2, bf16": (2, "engine=zero2,precision=bf16"),
    "ZeRO-2, bf16, one sample": (2, "engine=zero2,precision=bf16,batch.per_device=1"),
}
ZERO_NIGHTLY = {
    "ZeRO-1, bf16": (2, "engine=zero1,precision=bf16"),
    "ZeRO-1": (2, "engine=zero1"),
    "ZeRO-2, two micro-batches": (2, "engine=zero2,batch.accumulation=2"),
    "ZeRO-2, frozen trunk": (2, "engine=zero2,freeze=[backbone]"),
    "ZeRO-2, average": (2, "engine=zero2,precision=bf16,ema.decay=0.9"),
}
ZERO_ABOVE = {
    "ZeRO-2 on four": (4, "engine=zero2", 0.06),
    "ZeRO-3, bf16": (2, "engine=zero3,precision=bf16", 0.35),
}
"""With how much the forecast may be too high: a bucket as if always full, and stage 3's weights as if all were there,
which they are as long as they are fewer than ``MAX_LIVE``."""
"""Processes, and words of a configuration by commas; those that CI leaves to the night are in NIGHTLY."""


@contextlib.contextmanager
def silent_engine(config: RunConfig, world: int) -> Iterator[process_group.ProcessGroupEngine]:
    """The engine of ``config`` as the first of ``world`` processes, the others being nowhere. CPU."""
    module, name = engines._CLASSES[config.engine]
    kind = getattr(importlib.import_module(f"vla_ft.training.engines.{module}"), name)

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
        patch.setenv("RANK", "0")
        patch.setenv("LOCAL_RANK", "0")
        engine = Silent(config, torch.device("cpu"))
        try:
            yield engine
        finally:
            engine.close()


def foreseen_and_measured(world: int, words: str) -> tuple[Peak, int]:
    """The forecast of a case, and bytes that the allocator gave out at the fullest moment of its second step."""
    config = load_run_config([*SMALL, *words.split(",")])
    setup, description = Setup.of(config, world, world), describe(config)
    trace = rehearse(config, description, compute=compute_of(setup), card=False)
    if config.engine in SHARDED:
        trace = dataclasses.replace(trace, card=True)  # for the engine's part alone: no copies for a transport
    # Offloading on the CPU moves nothing, so what a card would have let go is still there.
    held = dataclasses.replace(setup, offload="none")
    foreseen = moments(trace, held, ema=config.ema is not None).peak()
    with silent_engine(config, world) as engine:
        return foreseen, measure_step(config, description, engine).peak
