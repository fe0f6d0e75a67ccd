"""The self-test on the cards that are here: a matrix product and each attention backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vla_ft.environment.selftest.attention import FLASH, FLEX, attend
from vla_ft.environment.selftest.check import Check
from vla_ft.environment.selftest.compiler import TRITON_FLOOR
from vla_ft.environment.table import Environment

if TYPE_CHECKING:
    import torch

AMPERE_ONLY = (FLASH, FLEX)
"""Backends whose kernels start at sm_80: flash-attn 2, and flex attention, which Triton compiles."""


def device(index: int) -> torch.device:
    """The card of a number."""
    import torch

    return torch.device("cuda", index)


def check_card(index: int, environment: Environment, backends: Sequence[str]) -> Iterator[Check]:
    """On a card that the environment serves: a matrix product is right, and each backend computes.

    A card that it does not serve (a display card beside, a build for another machine) is named and left alone.
    """
    import torch

    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    seen = f"{name}, sm_{capability[0]}{capability[1]}"
    if not environment.holds(capability):
        yield Check(f"gpu {index}", True, f"{seen}: not for this environment, nothing was computed on it")
        return
    yield Check(f"gpu {index}", True, seen)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 256, generator=generator), torch.randn(256, 256, generator=generator)
    error = ((a.to(device(index)) @ b.to(device(index))).cpu() - a @ b).abs().max().item()
    # TF32 is off by default, so this is single precision: 256 products of unit normals differ by far less than 1e-2.
    yield Check(f"gpu {index} matmul", error < 1e-2, f"differs from the CPU by {error:.1e}")
    q = torch.randn(2, 4, 128, 64, generator=generator).to(device(index), torch.float16)
    exact = attend("eager", q.cpu().double())
    for backend in backends:
        if backend in AMPERE_ONLY and capability < TRITON_FLOOR:
            continue
        with torch.cuda.device(index):
            error = (attend(backend, q).cpu().double() - exact).abs().max().item()
        yield Check(f"gpu {index} {backend}", error < 1e-2, f"differs from the formula by {error:.1e}")
