"""DETR layers: positions, masks, depth and activations."""

from __future__ import annotations

import pytest
import torch

from vla_ft.nn.detr import Activation, Decoder, Encoder, LayerShape, xavier_uniform_


def shape(**changes: object) -> LayerShape:
    return LayerShape(**{"dim": 16, "heads": 2, "feedforward": 24, "dropout": 0.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_ignored_tokens_change_nothing(pre_norm: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(shape(pre_norm=pre_norm), 2)
    x, positions = torch.randn(2, 5, 16), torch.randn(1, 5, 16)
    ignore = torch.tensor([[False, False, False, True, True]] * 2)
    changed = x.clone()
    changed[:, 3:] = torch.randn(2, 2, 16)
    torch.testing.assert_close(encoder(x, positions, ignore)[:, :3], encoder(changed, positions, ignore)[:, :3])
    assert not torch.allclose(encoder(x, positions)[:, :3], encoder(changed, positions)[:, :3])


def test_positions_reach_attention_only() -> None:
    """With one token attention is its value, and values carry no position: the output cannot depend on it."""
    encoder = Encoder(shape(), 1)
    x = torch.randn(3, 1, 16)
    torch.testing.assert_close(encoder(x, torch.zeros(1, 1, 16)), encoder(x, torch.randn(1, 1, 16)))


def test_only_the_pre_norm_encoder_ends_with_a_norm() -> None:
    assert "norm.weight" not in Encoder(shape(), 1).state_dict()
    assert "norm.weight" in Encoder(shape(pre_norm=True), 1).state_dict()


def test_decoder_stops_at_the_depth_asked_for() -> None:
    decoder = Decoder(shape(), 3).eval()
    inputs = (torch.randn(2, 4, 16), torch.randn(1, 4, 16), torch.randn(2, 6, 16), torch.randn(1, 6, 16))
    everything, first = decoder(*inputs), decoder(*inputs, depth=1)
    assert (len(everything), len(first)) == (3, 1)
    torch.testing.assert_close(first[0], everything[0])


@pytest.mark.parametrize("activation", ["relu", "gelu", "glu"])
def test_activations_run(activation: Activation) -> None:
    encoder = Encoder(shape(activation=activation), 1)
    assert encoder(torch.randn(2, 3, 16), torch.zeros(1, 3, 16)).shape == (2, 3, 16)
    assert encoder.layers[0].linear2.in_features == (12 if activation == "glu" else 24)


def test_xavier_leaves_biases_and_norms_alone() -> None:
    encoder = Encoder(shape(), 1)
    norms = encoder.layers[0].norm1.weight.clone()
    xavier_uniform_(encoder)
    bound = (6 / (16 + 24)) ** 0.5
    assert encoder.layers[0].linear1.weight.abs().max() <= bound
    assert torch.equal(encoder.layers[0].norm1.weight, norms)
