"""How a single-device model runs on one or several processes. Models never know which engine holds them.

Collective methods must be called by every process; their docstrings say so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vla_ft.devices import choose_device
from vla_ft.errors import EndedByPeer, UserError
from vla_ft.policies.base import Batch, Loss, Model


class Engine:
    """One process, one device."""

    name = "single"
    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: Model) -> nn.Module:
        """Move ``model`` to the device and return the module whose call trains it."""
        return model.to(self.device)

    @contextlib.contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Around one micro-batch: gradients are exchanged in the last one of a step only."""
        yield

    def move(self, batch: Batch) -> Batch:
        """The batch on this process's device."""
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def mean(self, values: Tensor) -> Tensor:
        """Average over processes. Collective."""
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes. Collective."""
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable object, on every process. Collective."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable object, by rank. Collective."""
        return [value]

    def agree(self, error: str | None) -> None:
        """Raise UserError on every process when any has an error; one of those that have it says it. Collective."""
        errors = self.gather(error)
        if error is not None and errors.index(error) == self.rank:
            raise UserError(error)
        if any(other is not None for other in errors):
            raise EndedByPeer("another process met a mistake")

    def close(self) -> None:
        """Leave the process group."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


class DdpEngine(Engine):
    """One full copy per process, gradients averaged (Li et al., 2020)."""

    name = "ddp"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def wrap(self, model: Model) -> nn.Module:
        super().wrap(model)
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are constants (frozen batch norm, position tables): nothing to broadcast at every forward.
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    @contextlib.contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            assert isinstance(module, DistributedDataParallel)
            with module.no_sync():
                yield

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.world_size

    def sum(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        dist.destroy_process_group()


def build_engine(device: str) -> Engine:
    """DDP under a launcher that sets WORLD_SIZE above 1 (``devices=`` or torchrun), a single process otherwise."""
    chosen = choose_device(device)
    return DdpEngine(chosen) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Engine(chosen)


def forward(module: nn.Module, batch: Batch, precision: str, device: torch.device) -> Loss:
    """Training loss under the run's precision; bf16 is autocast over float32 weights."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return module(batch)
