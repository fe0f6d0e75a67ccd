"""Which elements of a full tensor each process holds: every share is a range of the flattened tensor.

Whole copies, rows of the first dimension (FSDP2) and slices of a flat buffer (ZeRO) are all of this kind, which is why
checkpoints need to know nothing about engines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Range = tuple[int, int]
"""Elements [start, stop) of a flattened tensor."""
QUANTIZATION_BLOCK = 256
"""Elements that share one scale in 8-bit optimizer state (bitsandbytes' block-wise AdamW)."""


@dataclass(frozen=True)
class Piece:
    """What this process holds of one tensor, and what the processes of the main one's copy hold."""

    shape: tuple[int, ...]
    """Of the full tensor."""
    mine: Range
    ranges: tuple[Range, ...]
    """By process within the copy; in order, disjoint and complete. A whole copy is one range."""

    @property
    def numel(self) -> int:
        """Elements of the full tensor."""
        return math.prod(self.shape)

    @property
    def starts(self) -> list[int]:
        """Where the shares that are not empty begin: two runs with equal starts have cut the tensor alike."""
        return [start for start, stop in self.ranges if stop > start]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Piece:
        """All of a tensor."""
        full = (0, math.prod(shape))
        return cls(tuple(shape), full, (full,))

    @classmethod
    def rows(cls, shape: Sequence[int], shards: int, index: int) -> Piece:
        """FSDP2's share: equal numbers of rows, rounded up, so that the last shares may be smaller or empty."""
        row = math.prod(shape[1:])
        share = -(-shape[0] // shards)
        ends = [min(i * share, shape[0]) * row for i in range(shards + 1)]
        ranges = tuple(itertools.pairwise(ends))
        return cls(tuple(shape), ranges[index], ranges)


def block_ranges(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Ranges of the per-block scales that belong to ranges of 8-bit codes: every share begins a block of its own."""
    ends = [0]
    for start, stop in ranges:
        ends.append(ends[-1] + -(-(stop - start) // QUANTIZATION_BLOCK))
    return tuple(itertools.pairwise(ends))


def assemble_ranges(parts: Sequence[Tensor], ranges: Sequence[Range]) -> Tensor:
    """The flat full tensor from shares, each at least as long as its range."""
    kept = [part[: stop - start] for part, (start, stop) in zip(parts, ranges, strict=True)]
    return torch.cat(kept) if len(kept) > 1 else kept[0]
