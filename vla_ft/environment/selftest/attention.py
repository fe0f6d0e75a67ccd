"""The self-test's checks of the attention backends, each against the formula written out."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

from vla_ft.environment.selftest.check import Check
from vla_ft.environment.table import Environment

FLASH = "flash_attention_2"
FLEX = "flex_attention"


def installed_backends(environment: Environment) -> list[str]:
    """Backends of the table that this interpreter has: flash-attn is in no lock, the others come with torch."""
    have_flash = importlib.util.find_spec("flash_attn") is not None
    return [name for name in environment.attention if name != FLASH or have_flash]


def check_attention(backend: str) -> Check:
    """A backend that the label names computes on the CPU; flash-attn, which cannot, imports with what models use."""
    import torch

    name = f"attention {backend}"
    if backend == FLASH:
        module = importlib.import_module("flash_attn")
        # What transformers takes for padded batches; it needs einops, which the wheel does not bring.
        padding = importlib.import_module("flash_attn.bert_padding")
        whole = callable(module.flash_attn_func) and callable(padding.unpad_input)
        return Check(name, whole, f"flash_attn {module.__version__}")
    q = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    error = (attend(backend, q) - attend("eager", q.double())).abs().max().item()
    return Check(name, error < 1e-5, f"computes; differs from the formula by {error:.1e}")


def attend(backend: str, q: Any) -> Any:
    """Self-attention of ``q`` [B, heads, T, D] through one backend; ``eager`` is the formula written out."""
    import torch

    if backend == "eager":
        return torch.softmax(q @ q.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ q
    if backend == "sdpa":
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)
    if backend == FLEX:
        return _flex(q)
    from flash_attn import flash_attn_func

    transposed = q.transpose(1, 2)
    return flash_attn_func(transposed, transposed, transposed).transpose(1, 2)


def _flex(q: Any) -> Any:
    """Compiled on a card, as it is meant to be; on the CPU as torch writes it out, which needs no C++ compiler."""
    import torch
    from torch.nn.attention import flex_attention as module

    if q.is_cuda:
        return torch.compile(module.flex_attention)(q, q, q)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile")
        return module.flex_attention(q, q, q)
