"""What a card does differently from the CPU that traces for it, where it changes what is kept.

Fake tensors work on the device ``cpu`` alone (fake CUDA tensors end the process where there is no driver), so a trace
sees the CPU's choice of kernels and the CPU's autocast list. These two differ from CUDA's, and by much: on the CPU
attention with dropout keeps the score matrices, and autocast leaves layer norms and softmax in bfloat16.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

FLOAT32_UNDER_CUDA_AUTOCAST: tuple[str, ...] = (
    "acos", "asin", "cosh", "cumprod", "cumsum", "dist", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2",
    "log_softmax", "norm", "pow", "prod", "reciprocal", "renorm", "rsqrt", "sinh", "softmax", "sum", "tan",
)  # fmt: skip
"""torch's names, as functions and as tensor methods (torch's documentation of autocast, "CUDA Ops that can autocast to
float32")."""
_FUNCTIONAL = (
    "binary_cross_entropy_with_logits", "cosine_embedding_loss", "cosine_similarity", "cross_entropy",
    "gaussian_nll_loss",
    "group_norm", "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "layer_norm", "log_softmax",
    "margin_ranking_loss", "mse_loss", "multi_margin_loss", "multilabel_margin_loss", "nll_loss", "normalize",
    "pdist", "poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss", "softmax", "softmin", "softplus",
    "triplet_margin_loss",
)  # fmt: skip


@contextlib.contextmanager
def card_rules() -> Iterator[None]:
    """Inside, calls are as a card of compute capability 8.0 or later would run them.

    Attention: CUDA's fused kernels take dropout and keep its seed, not its mask. The fused CPU kernel, which keeps the
    same (output and log-sum-exp), is chosen only without dropout: so dropout is left out of the trace's call. Dropout
    by itself keeps a mask of bytes on a card, of floats on the CPU.

    Names are replaced where callers look them up: a function mode would not see calls from inside torch's own Python
    functions, nor those of blocks that are computed again in the backward pass.
    """
    with contextlib.ExitStack() as stack:
        for owner, name in _float32_names():
            stack.enter_context(_replaced(owner, name, _in_float32(getattr(owner, name))))
        attention = F.scaled_dot_product_attention
        stack.enter_context(_replaced(F, "scaled_dot_product_attention", _without_dropout(attention)))
        stack.enter_context(_replaced(F, "dropout", _fused_dropout))
        yield


def _float32_names() -> list[tuple[Any, str]]:
    named: list[tuple[Any, str]] = [(owner, name) for name in FLOAT32_UNDER_CUDA_AUTOCAST for owner in (torch, Tensor)]
    named += [(F, name) for name in _FUNCTIONAL] + [(torch, "layer_norm"), (torch, "group_norm")]
    named += [(Tensor, "__pow__"), (Tensor, "__rpow__"), (Tensor, "__rdiv__")]
    return [(owner, name) for owner, name in named if hasattr(owner, name)]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(owner).get(name)  # None where a base class has it
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            arguments, keywords = tree_map(_to_float32, (arguments, keywords))
        return function(*arguments, **keywords)

    return call


def _without_dropout(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    dropout_at = 4  # query, key, value, attn_mask, dropout_p

    def call(*arguments: Any, **keywords: Any) -> Tensor:
        if len(arguments) > dropout_at:
            arguments = (*arguments[:dropout_at], 0.0, *arguments[dropout_at + 1 :])
        return attention(*arguments, **{key: value for key, value in keywords.items() if key != "dropout_p"})

    return call


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, train=True)[0] if training and p > 0 else input


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
