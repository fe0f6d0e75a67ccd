"""Everything that is assumed about DeepSpeed's insides, in one place and checked when an engine is built.

DeepSpeed steps flat float32 slices ("masters") of all weights of a parameter group. Stages 1 and 2 cut the group's
flat buffer into equal slices, wherever that is inside a weight; stage 3 cuts every weight into equal slices, the last
one padded. Both are ranges of the flattened weight, as ``Piece`` has them, and what follows finds them by name.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vla_ft.errors import UserError
from vla_ft.training.engines.pieces import Piece

KNOWN = "0.19."
"""The versions whose source this was read from."""
_FLAT = (
    "bit16_groups", "round_robin_bit16_padding", "single_partition_of_fp32_groups", "averaged_gradients",
    "partition_size", "update_lp_params", "cpu_offload", "optimizer",
)  # fmt: skip
_PARTITIONED = (
    "fp16_groups", "fp32_partitioned_groups_flat", "averaged_gradients", "grad_position", "get_param_id",
    "grad_partitions_flat_buffer", "persistent_parameters", "offload_optimizer", "optimizer",
    "_partition_all_parameters", "_reassign_or_swap_out_partitioned_parameters",
)  # fmt: skip


def load(device: torch.device) -> ModuleType:
    """Import DeepSpeed, which takes seconds, for ``device``. Raises UserError where it is missing or another version.

    It must compile nothing: on the CPU it would build a shared-memory all-reduce that training never calls, so that is
    struck out of its table of operators (made to be edited: deepspeed/ops/__init__.py).
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # one process without a launcher
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
        import deepspeed.ops
    except ModuleNotFoundError as error:
        raise UserError(
            f"engine=zero1, zero2 and zero3 are DeepSpeed's, and this environment has no module '{error.name}'. "
            "Install deepspeed 0.19.8 (the images have it), or set engine=fsdp2, which cuts the same states."
        ) from None
    if not deepspeed.__version__.startswith(KNOWN):
        raise UserError(
            f"DeepSpeed {deepspeed.__version__} is installed; its insides are known for {KNOWN}x alone. "
            "Install deepspeed 0.19.8, or set engine=fsdp2."
        )
    accelerator = deepspeed.get_accelerator().device_name()
    if accelerator != device.type:
        raise RuntimeError(f"DeepSpeed was imported for {accelerator}, the run is on {device.type}")
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _quiet()
    module: ModuleType = deepspeed
    return module


def adopt_group(deepspeed: ModuleType) -> None:
    """Let DeepSpeed use the process group that is there."""
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _quiet() -> None:
    """Warnings only, and on the error stream: the other one is the banner's and the progress line's."""
    for old in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # torch 2.13 renamed what DeepSpeed calls
        warnings.filterwarnings("ignore", f".*{old}. is deprecated", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:  # its own; others may have been added
            handler.setStream(sys.stderr)


def release(engine: Any) -> None:
    """Take DeepSpeed's hooks away and leave the process group, so that another run may follow in this process."""
    import deepspeed.comm

    if engine is not None:
        engine.destroy()
    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None


@dataclass(frozen=True)
class Slice:
    """A weight's place in the flat master that this process steps."""

    group: int
    start: int
    count: int


class Masters(ABC):
    """The flat masters of one process: shares of weights, gradients and optimizer state by name."""

    flats: Sequence[Tensor]
    slices: dict[str, Slice]
    pieces: dict[str, Piece]

    def __init__(self, optimizer: Any) -> None:
        self.zero = optimizer

    @property
    def base(self) -> torch.optim.Optimizer:
        """torch's optimizer, whose state belongs to whole flat masters."""
        return self.zero.optimizer  # type: ignore[no-any-return]

    def share(self, name: str) -> Tensor:
        """This process's float32 elements of a trained weight; a view."""
        return self.cut(name, self.flats[self.slices[name].group].detach())

    def cut(self, name: str, flat: Tensor) -> Tensor:
        """What belongs to ``name`` in something that is laid out like its flat master; a view."""
        place = self.slices[name]
        return flat.narrow(0, place.start, place.count)

    def gradients(self) -> list[Tensor]:
        """Views of this process's averaged gradients after the last backward pass of an update."""
        if self.offloads:
            return [flat.grad for flat in self.flats if flat.grad is not None]
        return [g for group in range(len(self.flats)) for g in self.zero.averaged_gradients[group]]

    def forget_gradients(self) -> None:
        """Zeros for weights that will get no gradient: DeepSpeed would step them by that of an earlier update."""
        if self.offloads:
            for flat in self.flats:
                if flat.grad is not None:
                    flat.grad.zero_()

    @property
    @abstractmethod
    def offloads(self) -> bool:
        """Whether masters are in host memory."""

    @abstractmethod
    def push(self) -> None:
        """Round masters into the model's weights, on every process. Collective."""


class FlatMasters(Masters):
    """Stages 1 and 2."""

    def __init__(self, optimizer: Any, names: Mapping[int, str], rank: int, world: int) -> None:
        super().__init__(optimizer)
        require(optimizer, _FLAT)
        self.flats = optimizer.single_partition_of_fp32_groups
        self.slices, self.pieces = {}, {}
        if any(any(padding) for padding in optimizer.round_robin_bit16_padding):
            raise RuntimeError("DeepSpeed pads weights inside their flat buffer, which it was not told to")
        for group, members in enumerate(optimizer.bit16_groups):
            size, before = int(optimizer.partition_size[group]), 0
            for parameter in members:
                count = parameter.numel()
                ends = [min(max(r * size - before, 0), count) for r in range(world + 1)]
                ranges = tuple(itertools.pairwise(ends))
                name, (start, stop) = names[id(parameter)], ranges[rank]
                self.pieces[name] = Piece(tuple(parameter.shape), (start, stop), ranges)
                place = before + start - rank * size if stop > start else 0
                self.slices[name] = Slice(group, place, stop - start)
                self._compare(parameter, self.slices[name])
                before += count

    @staticmethod
    def _compare(parameter: nn.Parameter, place: Slice) -> None:
        """DeepSpeed's own account of the same, which its checkpoints are written from."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        theirs = None if mapping is None else mapping.get_hp_fragment_address()
        seen = (0, 0) if theirs is None else (theirs.start, theirs.numel)
        if seen != (place.start, place.count):
            raise RuntimeError(f"DeepSpeed holds {theirs} where {place} was expected")

    @property
    def offloads(self) -> bool:
        return bool(self.zero.cpu_offload)

    def push(self) -> None:
        self.zero.update_lp_params()


class PartitionedMasters(Masters):
    """Stage 3."""

    def __init__(self, optimizer: Any, names: Mapping[int, str], rank: int, world: int) -> None:
        super().__init__(optimizer)
        require(optimizer, _PARTITIONED)
        self.flats = optimizer.fp32_partitioned_groups_flat
        self.slices, self.pieces = {}, {}
        for members in optimizer.fp16_groups:
            for parameter in members:
                piece = partition(parameter, rank, world)
                group, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
                if size != parameter.ds_tensor.numel():
                    raise RuntimeError(f"DeepSpeed steps {size} elements of a share of {parameter.ds_tensor.numel()}")
                self.pieces[names[id(parameter)]] = piece
                self.slices[names[id(parameter)]] = Slice(group, start, piece.mine[1] - piece.mine[0])

    @property
    def offloads(self) -> bool:
        return bool(self.zero.offload_optimizer)

    def forget_gradients(self) -> None:
        super().forget_gradients()
        self.zero.grad_partitions_flat_buffer.zero_()

    @torch.no_grad()
    def push(self) -> None:
        self.zero._partition_all_parameters()
        for group in range(len(self.flats)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        small = self.zero.persistent_parameters
        if small:
            small[0].all_gather(small)


def partition(parameter: Any, rank: int, world: int) -> Piece:
    """How stage 3 cuts a weight: equal slices, rounded up."""
    count, size = parameter.ds_numel, parameter.ds_tensor.ds_numel
    if size != -(-count // world):
        raise RuntimeError(f"DeepSpeed cut {count} elements over {world} into shares of {size}")
    ends = [min(r * size, count) for r in range(world + 1)]
    ranges = tuple(itertools.pairwise(ends))
    return Piece(tuple(parameter.ds_shape), ranges[rank], ranges)


def frozen_share(parameter: Any, piece: Piece) -> Tensor:
    """Stage 3: this process's elements of a frozen weight; a view."""
    return parameter.ds_tensor.detach().narrow(0, 0, piece.mine[1] - piece.mine[0])  # type: ignore[no-any-return]


class Partitioner:
    """Stage 3's cutting of weights while the model is being filled: one whole weight at a time."""

    def __init__(self, deepspeed: ModuleType, settings: dict[str, Any], dtype: torch.dtype) -> None:
        self._init = deepspeed.zero.Init(config_dict_or_path=settings, dtype=dtype)
        require(self._init, ("_convert_to_zero_parameters",))

    def __call__(self, parameter: nn.Parameter) -> None:
        self._init._convert_to_zero_parameters([parameter])


def require(holder: Any, attributes: Sequence[str]) -> None:
    """Raise an internal error where DeepSpeed lacks what is used here."""
    missing = [name for name in attributes if not hasattr(holder, name)]
    if missing:
        raise RuntimeError(f"DeepSpeed's {type(holder).__name__} has no {', '.join(missing)}: another version?")


def flats_by_name(masters: Masters) -> Iterator[tuple[int, list[str]]]:
    """Every flat master by number, with the names of the weights that have a share in it."""
    for group in range(len(masters.flats)):
        yield group, [name for name, place in masters.slices.items() if place.group == group]
