"""8-bit optimizer state on another cut than the one it was made on."""

from __future__ import annotations

import torch
from torch import nn

from vla_ft.training.eight_bit import EightBitAdamW, code_map, dequantize, quantize
from vla_ft.training.engines.pieces import block_ranges
from vla_ft.training.rounding import SMALLEST


def coded(values, cut, table):
    parts = [quantize(values[start:stop], table) for start, stop in cut if stop > start]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def test_codes_are_read_as_numbers_over_any_cut():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    table = code_map("state1")
    cuts = {"one": ((0, 5000),), "two": ((0, 2600), (2600, 5000)), "empty": ((0, 3000), (3000, 5000), (5000, 5000))}
    for cut in cuts.values():
        codes, scales = coded(values, cut, table)
        assert block_ranges(cut)[-1][1] == len(scales)
        whole = dequantize(codes, scales, cut, (0, 5000), table)
        torch.testing.assert_close(whole, values, atol=0.06, rtol=0.05)
        part = dequantize(codes[1300:4100], scales, cut, (1300, 4100), table)
        assert torch.equal(part, whole[1300:4100])


def test_quantising_again_on_the_same_cut_changes_nothing():
    values = torch.rand(1024)
    table = code_map("state2")
    codes, scales = quantize(values, table)
    again, same = quantize(dequantize(codes, scales, ((0, 1024),), (0, 1024), table), table)
    assert torch.equal(codes, again)
    torch.testing.assert_close(scales, same)


def test_small_tensors_are_small_by_their_full_size():
    parameters = [nn.Parameter(torch.ones(1024)) for _ in range(2)]
    sizes = {id(parameters[0]): SMALLEST, id(parameters[1]): SMALLEST - 1}
    optimizer = EightBitAdamW([{"params": parameters, "lr": 1e-3, "weight_decay": 0.0}], sizes=sizes, rounding=None,
                              betas=(0.9, 0.999), eps=1e-8)  # fmt: skip
    for parameter in parameters:
        parameter.grad = torch.ones(1024)
    optimizer.step()
    assert [optimizer.state[p]["state1"].dtype for p in parameters] == [torch.uint8, torch.float32]
