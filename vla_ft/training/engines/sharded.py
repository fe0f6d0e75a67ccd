"""Weights, gradients and optimizer state cut over processes: torch's FSDP2 (``fully_shard``), whole or in groups.

Every block of the model is a unit that is gathered for its forward and backward and let go; the rest is one more unit.
The optimizer steps plain tensors that alias the shards, so that no optimizer has to know of distributed tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from vla_ft.config import RunConfig
from vla_ft.errors import UserError
from vla_ft.policies.base import Model
from vla_ft.training.engines.filling import joined, scatter_ranges, take_values
from vla_ft.training.engines.mixed_units import admit_mixed_units
from vla_ft.training.engines.pieces import Piece
from vla_ft.training.engines.process_group import ProcessGroupEngine


class ShardedEngine(ProcessGroupEngine):
    """FSDP2 over all processes; one process is enough, for its offload."""

    name = "fsdp2"

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._mesh = self._build_mesh()
        self._shard_group = self._mesh.get_group("shard")
        self._shards = self._mesh.size(self._mesh.ndim - 1)
        self._parameters: dict[str, nn.Parameter] = {}

    def _build_mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.world_size,), mesh_dim_names=("shard",))

    @property
    def builds_real(self) -> bool:
        return self.is_main

    @property
    def shard(self) -> int:
        return self._mesh.get_local_rank("shard")

    # --- the model -------------------------------------------------------------------------------------------------

    def wrap(self, model: Model) -> None:
        admit_mixed_units()
        self.model = self.module = model
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        if single := [name for name, shape in shapes.items() if not shape]:
            raise UserError(
                f"engine={self.name} cuts weights by rows, and {', '.join(single[:4])} is a single number. "
                "Use engine=ddp or engine=zero2."
            )
        self.pieces = {name: Piece.rows(shape, self._shards, self.shard) for name, shape in shapes.items()}
        # The same way on every process: shapes are cut first, values come afterwards, one tensor at a time.
        values = take_values(model)
        for unit in (*model.blocks(), model):
            fully_shard(unit, **self._policies())
        register_fsdp_forward_method(model, "sample")
        self._fill(model, values)
        _settle_storage(model)
        self.settle()
        self._alias(model)

    def _policies(self) -> dict[str, Any]:
        pin = self.device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pin) if self._offloads else OffloadPolicy()
        # Inputs are left alone: autocast decides which operations run in bfloat16, so softmax, norms and loss run in
        # float32. All weights are gathered in bfloat16 though, those of norms as well: half the traffic, and not quite
        # the numbers of autocast over float32 weights (1e-4 relative in a first step).
        precision = MixedPrecisionPolicy()
        if self.config.precision != "fp32":
            precision = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        return {"mesh": self._mesh, "mp_policy": precision, "offload_policy": offload}

    @property
    def _offloads(self) -> bool:
        return self.config.offload == "all"

    @torch.no_grad()
    def _fill(self, model: Model, values: dict[str, Tensor]) -> None:
        """Give every process its elements of what the main one built. Collective."""
        model.to_empty(device="cpu" if self._offloads else self.device)
        by_rank = [rank % self._shards for rank in range(self.world_size)]
        for name, parameter in model.named_parameters():
            ranges = [self.pieces[name].ranges[index] for index in by_rank]
            local = _local(parameter)
            local.copy_(scatter_ranges(values.pop(name, None), ranges, local.dtype, self.rank).view(local.shape))
        for prefix, module in model.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    name = joined(prefix, key)
                    whole = [(0, buffer.numel())] * self.world_size
                    filled = scatter_ranges(values.pop(name, None), whole, buffer.dtype, self.rank)
                    module._buffers[key] = filled.view(buffer.shape).to(self.device)

    def _alias(self, model: Model) -> None:
        self._parameters = dict(model.named_parameters())
        self.weights = {name: _local(p) for name, p in self._parameters.items()}
        self.trained = {
            name: nn.Parameter(self.weights[name]) for name, p in self._parameters.items() if p.requires_grad
        }

    def check(self) -> None:
        super().check()
        self._check_aliases()
        units = [m for m in self.model.modules() if isinstance(m, FSDPModule)]
        place = "cpu" if self._offloads else self.device.type
        wrong = [
            name
            for name, p in self._parameters.items()
            if not isinstance(p, DTensor) or p.to_local().device.type != place or p.shape != self.pieces[name].shape
        ]
        if len(units) != len(self.model.blocks()) + 1 or wrong or self._mesh.size() != self.world_size:
            raise RuntimeError(f"engine {self.name}: {len(units)} units on {self._mesh}, not shards: {wrong[:4]}")

    def describe(self) -> str:
        return f"{self.name}, {len(self.model.blocks()) + 1} units over {self._shards} process(es)"

    # --- one update ------------------------------------------------------------------------------------------------

    def clip(self, limit: float) -> Tensor:
        for name, alias in self.trained.items():
            gradient = self._parameters[name].grad
            if isinstance(gradient, DTensor) and alias.numel():
                alias.grad = gradient.to_local()
        return super().clip(limit)

    def _total_norm(self, norm: Tensor) -> Tensor:
        squared = norm.square()
        dist.all_reduce(squared, group=self._shard_group)
        return squared.sqrt()

    def step(self) -> None:
        self._check_aliases()
        super().step()

    def zero_grad(self) -> None:
        super().zero_grad()
        self.module.zero_grad(set_to_none=True)

    def settle(self) -> None:
        # The outermost unit keeps its gathered weights after a forward; without this a later one would use them again.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _check_aliases(self) -> None:
        for name, parameter in self._parameters.items():
            if _local(parameter).data_ptr() != self.weights[name].data_ptr():
                raise RuntimeError(f"engine {self.name}: the shard of {name} has moved away from its optimizer")


class HybridEngine(ShardedEngine):
    """Copies of shards: each group of neighbouring processes holds one copy, gradients are averaged over all."""

    name = "hsdp"

    def _build_mesh(self) -> DeviceMesh:
        group = self.group_size
        self._holders = dist.new_group(list(range(group)))
        shape = (self.world_size // group, group)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))

    @property
    def group_size(self) -> int:
        """Processes that hold one copy together."""
        from vla_ft.training.engines import asked_setup

        return asked_setup(self.config).shard_group

    @property
    def holds_main_copy(self) -> bool:
        return self.rank < self._shards

    def describe(self) -> str:
        return f"{super().describe()}, {self.world_size // self._shards} copies"


def _settle_storage(model: Model) -> None:
    """FSDP finds its root and pads its storage at the first forward. What is aliased must not move after that, so a
    forward that computes nothing comes first. Collective."""
    model._touch = lambda: None  # type: ignore[assignment]
    register_fsdp_forward_method(model, "_touch")
    model._touch()  # type: ignore[operator]
    del model._touch


def _local(parameter: nn.Parameter) -> Tensor:
    with torch.no_grad():
        assert isinstance(parameter, DTensor)
        return parameter.to_local()
