"""Giving values to a model that was cut before it had any: the main process sends every other its elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vla_ft.training.engines.pieces import Range


def take_values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, leaving ``model`` on the meta device; nothing on a process that built it there.

    The tensors are the model's own: whoever pops one and lets it go frees its memory.
    """
    names = {id(p): name for name, p in model.named_parameters() if not p.is_meta}
    values: dict[str, Tensor] = {}
    shells: dict[int, nn.Parameter] = {}  # one for each parameter, so that tied ones stay tied
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in names:
                if id(parameter) not in shells:
                    empty = torch.empty_like(parameter, device="meta")
                    shells[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                    values[names[id(parameter)]] = parameter.data
                module._parameters[key] = shells[id(parameter)]
        for key, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                values[joined(prefix, key)] = buffer
                module._buffers[key] = torch.empty_like(buffer, device="meta")
    return values


def joined(prefix: str, key: str) -> str:
    """The full name of a module's member."""
    return f"{prefix}.{key}" if prefix else key


def scatter_ranges(value: Tensor | None, ranges: Sequence[Range], dtype: torch.dtype, rank: int) -> Tensor:
    """This process's range of the main one's ``value``, flat, on the CPU. Collective.

    ``ranges`` has one range for every process. As bytes, through host memory: see ``gather_ranges``.
    """
    longest = max(stop - start for start, stop in ranges)
    mine = torch.empty(longest, dtype=dtype)
    parts = None
    if rank == 0:
        assert value is not None
        flat = value.detach().reshape(-1).cpu()
        parts = [_padded(flat[start:stop], longest).view(torch.uint8) for start, stop in ranges]
    dist.scatter(mine.view(torch.uint8), parts, src=0)
    start, stop = ranges[rank]
    return mine[: stop - start]


def _padded(part: Tensor, length: int) -> Tensor:
    if part.numel() == length:
        return part
    return torch.cat((part, part.new_zeros(length - part.numel())))
