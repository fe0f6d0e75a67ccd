"""CLIP's image tower against transformers', its size, and its activation."""

from __future__ import annotations

import pytest
import torch

from vla_ft.nn.clip import ClipShape, ClipVision, quick_gelu
from vla_ft.policies.act.trunks import _clip

SMALL = ClipShape(image_size=64, patch_size=16, width=32, heads=4, depth=2, out_channels=12)


def test_published_size() -> None:
    with torch.device("meta"):
        model = ClipVision()
        assert sum(p.numel() for p in model.parameters()) == 87_849_216
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 512, 7, 7)
        assert model(torch.empty(2, 3, 224, 224), pooled=True).shape == (2, 512)
    assert len(model.blocks()) == 12


def test_features_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPVisionConfig(**shape, image_size=64, patch_size=16, projection_dim=12)
    torch.manual_seed(0)
    reference = transformers.CLIPVisionModelWithProjection(config).eval()
    ours = ClipVision(SMALL)
    state, rename = _clip(reference.state_dict())
    ours.load_state_dict({str(rename(key)): value for key, value in state.items()})
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = reference(images)
        torch.testing.assert_close(ours(images, pooled=True), expected.image_embeds, rtol=1e-4, atol=1e-5)
        # Patch features: the same norm and projection on the other tokens.
        tokens = reference.vision_model.post_layernorm(expected.last_hidden_state[:, 1:])
        projected = reference.visual_projection(tokens).transpose(1, 2).reshape(3, 12, 4, 4)
        torch.testing.assert_close(ours(images), projected, rtol=1e-4, atol=1e-5)


def test_quick_gelu_is_not_gelu() -> None:
    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(quick_gelu(torch.tensor([1.0])), torch.tensor([1 / (1 + 2.718281828**-1.702)]))
    assert (quick_gelu(x) - torch.nn.functional.gelu(x)).abs().max() > 0.01


@pytest.mark.parametrize("pooled", [False, True])
def test_every_weight_gets_a_gradient(pooled: bool) -> None:
    model = ClipVision(SMALL)
    model(torch.randn(2, 3, 64, 64), pooled=pooled).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] in (
        [],
        # A bias of the keys shifts all scores of a query alike: its gradient is zero up to rounding.
        ["layers.0.attention.key.bias", "layers.1.attention.key.bias"],
    )
