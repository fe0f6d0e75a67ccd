"""What engines of several processes share: the group, its collectives, and gathering shares tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vla_ft.config import RunConfig
from vla_ft.training.engines.base import Engine
from vla_ft.training.engines.pieces import Range, assemble_ranges


class ProcessGroupEngine(Engine):
    """Joins the launcher's process group, or makes one of its own when it runs alone (sharding for its offload)."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        super().__init__(config, device)
        join_group(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._holders: dist.ProcessGroup | None = None
        """The processes that hold the main one's copy together; None for all."""

    @property
    def holds_main_copy(self) -> bool:
        """Whether this process belongs to the copy that checkpoints are written from."""
        return True

    def gather_ranges(self, local: Tensor, ranges: Sequence[Range]) -> Tensor | None:
        if not self.holds_main_copy:
            return None
        if len(ranges) == 1:
            return local.detach().reshape(-1).cpu() if self.is_main else None
        # Through host memory: a card that is nearly full has no room for a whole tensor, and what is gathered goes to
        # disk anyway. As bytes, so that every type can travel.
        flat = local.detach().reshape(-1).cpu()
        longest = max(stop - start for start, stop in ranges)
        padded = torch.zeros(longest, dtype=flat.dtype)
        padded[: flat.numel()] = flat
        parts = [torch.empty_like(padded) for _ in ranges] if self.is_main else None
        sent = None if parts is None else [part.view(torch.uint8) for part in parts]
        dist.gather(padded.view(torch.uint8), sent, dst=0, group=self._holders)
        return None if parts is None else assemble_ranges(parts, ranges)

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.world_size

    def sum(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        dist.destroy_process_group()


def join_group(device: torch.device) -> None:
    """Tensors on the CPU travel through gloo, those on cards through NCCL."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
