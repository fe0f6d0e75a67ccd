"""A file in the address space: tensors that are parts of it, read from the disk when their numbers are."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux' flag; Python names it from 3.13 on."""


class MappedFile:
    """A whole file, mapped privately: what is written to its tensors stays in this process's memory.

    ``safetensors.safe_open`` and ``torch.load(mmap=True)`` map a file so that Linux counts all of it as memory that
    may be written, and refuses when that is more than the machine has: 30.5 GB on 23 GiB failed with both. Without a
    reservation only the pages that really are written count. The file must not be cut while tensors of it live.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        with path.open("rb") as file:
            self._map = mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )

    def read(self, start: int, count: int) -> bytes:
        """A copy of ``count`` bytes from ``start`` on."""
        return self._map[start : start + count]

    def tensor(
        self,
        dtype: torch.dtype,
        shape: Sequence[int],
        *,
        start: int,
        stride: Sequence[int] | None = None,
        skip: int = 0,
    ) -> Tensor:
        """The elements from byte ``start`` on as a tensor that shares the file's pages.

        ``stride`` and ``skip`` count elements, as in ``torch.as_strided``; without a stride the tensor is contiguous.
        """
        contiguous = _contiguous(shape)
        stride = contiguous if stride is None else stride
        if 0 in shape:
            return torch.empty(tuple(shape), dtype=dtype)
        count = skip + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
        if start % dtype.itemsize:  # files of other writers may be unaligned, which not every processor reads
            raw = raw.clone()
        return raw.view(dtype).as_strided(tuple(shape), tuple(stride), skip)


def last_byte(
    dtype: torch.dtype, shape: Sequence[int], *, start: int, stride: Sequence[int] | None = None, skip: int = 0
) -> int:
    """Where the tensor that ``MappedFile.tensor`` makes of the same arguments ends."""
    if 0 in shape:
        return start
    stride = _contiguous(shape) if stride is None else stride
    return start + (skip + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1) * dtype.itemsize


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    stride, steps = 1, []
    for size in reversed(shape):
        steps.append(stride)
        stride *= size
    return tuple(reversed(steps))
