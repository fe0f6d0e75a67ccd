"""The kernel that the self-test compiles. Triton reads a kernel's source from its file, so it has one of its own."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add(x, y, n, block: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    """y += x over n float32 values, ``block`` a program."""
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    inside = offsets < n
    tl.store(y + offsets, tl.load(x + offsets, mask=inside) + tl.load(y + offsets, mask=inside), mask=inside)
