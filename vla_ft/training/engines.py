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

from vla_ft.errors import UserError
from vla_ft.policies.base import Batch, Loss, Model

PROMISED_DEVICE = "VLA_FT_DEVICE"
"""The launcher's promise (``cpu`` or ``cuda``): an image without its card must not train on the CPU unnoticed."""


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

    def barrier(self) -> None:
        """Wait for every process. Collective."""

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
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError("Every part of the model is frozen: nothing to train. Shorten freeze=[...].")
        ids = [self.device.index] if self.device.type == "cuda" else None
        # ACT's pad head is computed and enters no loss, as published: its gradient never comes.
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)

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

    def barrier(self) -> None:
        dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


def choose_device(wanted: str) -> torch.device:
    """The device of this process. Raises UserError when the wanted or promised one is not there."""
    promised = os.environ.get(PROMISED_DEVICE) or "auto"
    if promised not in ("auto", "cpu", "cuda"):
        raise UserError(f"{PROMISED_DEVICE} is '{promised}', expected cpu or cuda. Mend it in .env or the shell.")
    if "auto" not in (promised, wanted) and promised != wanted:
        raise UserError(
            f"device={wanted}, but this environment was started for {promised} ({PROMISED_DEVICE}). "
            f"Say device={promised}, or start it with `invoke use --gpu ...`."
        )
    kind = promised if wanted == "auto" else wanted
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "A CUDA device was promised and torch finds none "
            f"(torch {torch.__version__}, CUDA {torch.version.cuda}). Run `invoke doctor` on the host."
        )
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def build_engine(device: str) -> Engine:
    """DDP under a launcher that sets WORLD_SIZE above 1 (``devices=`` or torchrun), a single process otherwise."""
    chosen = choose_device(device)
    return DdpEngine(chosen) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Engine(chosen)


def forward(module: nn.Module, batch: Batch, precision: str, device: torch.device) -> Loss:
    """Training loss under the run's precision; bf16 is autocast over float32 weights."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return module(batch)
