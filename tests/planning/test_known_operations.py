"""An operation's result from memory is the one that fake tensors give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vla_ft.config import load_run_config
from vla_ft.planning.allocation import AllocationLog
from vla_ft.planning.imagined import describe
from vla_ft.planning.known_operations import KnownOperations
from vla_ft.planning.rehearsal import rehearse

ATEN = torch.ops.aten


@pytest.fixture
def mode():
    with FakeTensorMode(allow_non_fake_inputs=True) as found:
        yield found


def look(tensor: Tensor) -> tuple[object, ...]:
    storage = tensor.untyped_storage().nbytes()
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.storage_offset(), storage


@pytest.mark.parametrize(
    "call",
    [
        lambda x, known: known(ATEN.mm.default, (x, x.t()), {}),
        lambda x, known: known(ATEN._to_copy.default, (x,), {"dtype": torch.bfloat16}),
        lambda x, known: known(ATEN.native_layer_norm.default, (x, [6], None, None, 1e-5), {}),
        lambda x, known: known(ATEN.native_dropout.default, (x, 0.5, True), {}),
        lambda x, known: known(ATEN.slice.Tensor, (x, 1, 2, 5), {}),
        lambda x, known: known(ATEN.split.Tensor, (x, 2, 1), {}),
        lambda x, known: known(ATEN.cat.default, ([x, x],), {}),
    ],
    ids=["mm", "to", "layer norm", "dropout", "slice", "split", "cat"],
)
def test_the_second_answer_is_the_first(call, mode, monkeypatch):
    known, x = KnownOperations(), torch.zeros(4, 6)
    first = call(x, known)
    asked: list[object] = []
    dispatch = FakeTensorMode.dispatch

    def counting(self, function, *rest):
        asked.append(function)
        return dispatch(self, function, *rest)

    monkeypatch.setattr(FakeTensorMode, "dispatch", counting)
    second = call(x, known)
    monkeypatch.undo()
    assert not [function for function in asked if function not in (ATEN.t.default, torch.ops.prim.device.default)]
    several = isinstance(first, (tuple, list))
    assert type(first) is type(second)
    for one, two in zip(first if several else [first], second if several else [second], strict=True):
        assert look(one) == look(two) and one is not two
        shared = x.untyped_storage()._cdata
        assert (one.untyped_storage()._cdata == shared) == (two.untyped_storage()._cdata == shared)


def test_numbers_of_other_types_are_other_arguments(mode):
    known, x = KnownOperations(), torch.zeros(3, dtype=torch.int64)
    assert known(ATEN.add.Tensor, (x, 1), {}).dtype == torch.int64
    assert known(ATEN.add.Tensor, (x, 1.0), {}).dtype == torch.float32
    assert known(ATEN.add.Tensor, (x, True), {}).dtype == torch.int64


def test_what_is_changed_in_place_is_the_argument_itself(mode):
    known, x = KnownOperations(), torch.zeros(3)
    for _ in range(2):
        assert known(ATEN.add_.Tensor, (x, 1.0), {}) is x


@pytest.mark.parametrize("words", [("precision=bf16", "batch.accumulation=2"), ("activation_checkpointing=true",)])
def test_the_account_is_that_without_a_memory(words, monkeypatch):
    config = load_run_config(["recipe=act-mock", "data.path=mock", "data.mock.image_size=[32,32]", *words])
    compute = "autocast" if "precision=bf16" in words else "fp32"
    remembered = rehearse(config, describe(config), compute=compute, card=True).events
    monkeypatch.setattr(KnownOperations, "__call__", lambda _, function, *rest: function(*rest[0], **rest[1]))
    for name, column in vars(rehearse(config, describe(config), compute=compute, card=True).events).items():
        np.testing.assert_array_equal(vars(remembered)[name], column, err_msg=name)


def test_gradients_flow_through_remembered_operations(mode):
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    with AllocationLog():
        for _ in range(2):
            F.linear(torch.zeros(2, 8), weight).chunk(2, dim=1)[0].square().sum().backward()
    assert look(weight.grad) == look(weight)
