"""Where a card differs from the CPU that traces for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vla_ft.planning.card_rules import card_rules


def saved(function):
    """Tensors that autograd keeps for the backward pass of ``function``."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function()
    return kept


@pytest.mark.parametrize(
    "function",
    [lambda x: F.layer_norm(x, x.shape[-1:]), lambda x: x.softmax(-1), lambda x: x**2, lambda x: torch.exp(x)],
)
def test_cuda_autocast_keeps_these_in_float32(function):
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with card_rules():
            assert function(x).dtype == torch.float32
        assert function(x).dtype == torch.bfloat16
    with card_rules():
        assert function(x).dtype == torch.bfloat16, "without autocast types are the caller's"


def test_matrix_products_stay_in_bfloat16():
    with torch.autocast("cpu", dtype=torch.bfloat16), card_rules():
        assert nn.Linear(4, 4)(torch.ones(2, 4)).dtype == torch.bfloat16


def test_dropout_keeps_bytes():
    x = torch.ones(1000, requires_grad=True)
    with card_rules():
        kept = saved(lambda: F.dropout(x, 0.5))
    assert [t.dtype for t in kept if t.numel() == 1000] == [torch.bool]
    assert [t.dtype for t in saved(lambda: F.dropout(x, 0.5)) if t.numel() == 1000] == [torch.float32]


def test_attention_with_dropout_keeps_no_scores():
    layer = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
    x = torch.ones(1, 64, 8, requires_grad=True)
    with card_rules():
        kept = saved(lambda: layer(x, x, x, need_weights=False))
    assert not [t.shape for t in kept if t.shape[-2:] == (64, 64)]
    assert [t.shape for t in saved(lambda: layer(x, x, x, need_weights=False)) if t.shape[-2:] == (64, 64)]


def test_nothing_stays_replaced():
    before = (F.dropout, F.scaled_dot_product_attention, torch.Tensor.softmax, torch.Tensor.__pow__, torch.exp)
    with pytest.raises(ZeroDivisionError), card_rules():
        1 / 0  # noqa: B018
    assert before == (F.dropout, F.scaled_dot_product_attention, torch.Tensor.softmax, torch.Tensor.__pow__, torch.exp)
    assert "softmax" not in vars(torch.Tensor)
