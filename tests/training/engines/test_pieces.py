from __future__ import annotations

import pytest
import torch

from vla_ft.training.engines.pieces import Piece, assemble_ranges, block_ranges


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_rows_are_cut_as_torch_chunks_them(rows, shards):
    full = torch.arange(rows * 6).view(rows, 3, 2)
    chunks = list(full.chunk(shards))
    chunks += [full[:0]] * (shards - len(chunks))
    for index in range(shards):
        piece = Piece.rows(full.shape, shards, index)
        start, stop = piece.mine
        assert torch.equal(full.reshape(-1)[start:stop], chunks[index].reshape(-1))
        assert piece.ranges[0][0] == 0 and piece.ranges[-1][1] == piece.numel
    assert torch.equal(assemble_ranges([c.reshape(-1) for c in chunks], piece.ranges), full.reshape(-1))


def test_a_whole_copy_is_one_range():
    assert Piece.whole((2, 3)).ranges == ((0, 6),)
    assert Piece.whole(()).numel == 1


def test_every_share_begins_a_block_of_its_own():
    assert block_ranges(((0, 300), (300, 556), (556, 556))) == ((0, 2), (2, 3), (3, 3))
