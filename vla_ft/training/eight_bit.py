"""AdamW with both moments in 8 bits by blocks (Dettmers et al., 2022), by bitsandbytes, over weights of either type.

Imported only where it is used: bitsandbytes loads a library of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from bitsandbytes.functional import create_dynamic_map, quantize_blockwise
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from vla_ft.training.engines.pieces import QUANTIZATION_BLOCK, Range, block_ranges
from vla_ft.training.rounding import SMALLEST, Rounding

CODES = {"state1": "absmax1", "state2": "absmax2"}
"""Entries that are codes when they are bytes, and the entry of their blocks' scales."""


class EightBitAdamW(AdamW8bit):
    """bitsandbytes' AdamW8bit with three additions: which tensors are small is decided by their full size (``sizes``,
    by ``id``), bfloat16 weights are stepped through a float32 copy of one tensor at a time and rounded back, and state
    is set by parameter."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        sizes: Mapping[int, int],
        rounding: Rounding | None,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(params, betas=betas, eps=eps)
        self.rounding = rounding
        self._sizes = dict(sizes)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """bitsandbytes' settings of one parameter, with our rule for small ones."""
        config = super().get_config(gindex, pindex, group)
        size = self._sizes[id(self.param_groups[gindex]["params"][pindex])]
        # The library compares the number of elements here, which may be a small part of a large tensor.
        config["min_8bit_size"] = 0 if size >= SMALLEST else size + 1
        return config

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
        """One update of one parameter."""
        if self.rounding is None or p.dtype == torch.float32:
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None
        state = self.state[p]
        exact = nn.Parameter(self.rounding.read(p, state))
        exact.grad = p.grad.to(torch.float32)
        self.state[exact] = state  # the library finds the state by the tensor that it steps
        try:
            super().update_step(group, exact, gindex, pindex)
        finally:
            del self.state[exact]
        number = sum(len(g["params"]) for g in self.param_groups[:gindex]) + pindex
        self.rounding.write(p, exact.data, state, int(state["step"]), number)

    @torch.no_grad()
    def restore(self, parameter: nn.Parameter, entries: Mapping[str, Tensor]) -> None:
        """Set the state of one parameter; tensors may be flat and on the CPU."""
        gindex, pindex = next(
            (g, i) for g, group in enumerate(self.param_groups) for i, p in enumerate(group["params"]) if p is parameter
        )
        self.state[parameter].clear()
        self.init_state(self.param_groups[gindex], parameter, gindex, pindex)
        state = self.state[parameter]
        for key, value in entries.items():
            if key == "step":
                state[key] = int(value)
            elif key in state:
                state[key].copy_(value.view(state[key].shape))
            else:
                state[key] = value.to(parameter.device, copy=True).view(parameter.shape)


def is_code(entry: str, value: Tensor) -> bool:
    """Whether an entry holds 8-bit codes rather than numbers."""
    return entry in CODES and value.dtype == torch.uint8


def code_map(entry: str) -> Tensor:
    """The 256 numbers in [-1, 1] that codes stand for: the second moment, never negative, has an unsigned map."""
    return create_dynamic_map(signed=entry == "state1")


def dequantize(codes: Tensor, scales: Tensor, cut: Sequence[Range], wanted: Range, table: Tensor) -> Tensor:
    """Float32 elements ``wanted`` of a tensor whose flat ``codes`` and ``scales`` were made share by share of ``cut``.

    ``codes`` are those of the range ``wanted`` alone, ``scales`` all of them.
    """
    values = table[codes.int()]
    for (start, stop), blocks in zip(cut, block_ranges(cut), strict=True):
        low, high = max(start, wanted[0]), min(stop, wanted[1])
        if low < high:
            factors = scales[slice(*blocks)].repeat_interleave(QUANTIZATION_BLOCK)[low - start : high - start]
            values[low - wanted[0] : high - wanted[0]] *= factors
    return values


def quantize(values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of a share."""
    codes, state = quantize_blockwise(values, code=table.clone(), blocksize=QUANTIZATION_BLOCK)
    return codes, state.absmax
