"""The image trunk: sizes, names and frozen statistics."""

from __future__ import annotations

import pytest
import torch

from vla_ft.nn.resnet import FrozenBatchNorm2d, ResNet, ResNetName


@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [("resnet18", 11_166_912, 512), ("resnet34", 21_267_648, 512), ("resnet50", 23_454_912, 2048)],
)
def test_sizes_without_classifier_and_norms(name: ResNetName, parameters: int, channels: int) -> None:
    """torchvision's counts less the classifier and the affine part of the norms, which are constants here."""
    with torch.device("meta"):
        trunk = ResNet(name)
        assert trunk(torch.empty(1, 3, 480, 640)).shape == (1, channels, 15, 20)
    assert sum(p.numel() for p in trunk.parameters()) == parameters
    assert trunk.out_channels == channels
    assert len(trunk.blocks()) == {"resnet18": 8, "resnet34": 16, "resnet50": 16}[name]


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        names = set(ResNet("resnet50").state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias"} <= names
    assert not any("fc" in n or "num_batches_tracked" in n for n in names)


def test_dilation_quadruples_the_tokens_with_the_same_weights() -> None:
    with torch.device("meta"):
        strided, dilated = ResNet("resnet50"), ResNet("resnet50", dilation=True)
        assert dilated(torch.empty(1, 3, 64, 96)).shape == (1, 2048, 4, 6)
    assert {k: v.shape for k, v in strided.state_dict().items()} == {
        k: v.shape for k, v in dilated.state_dict().items()
    }
    # As torchvision dilates: the stage's first block undilated, the others by the stride they replace.
    assert [block.conv2.dilation for block in dilated.layer4] == [(1, 1), (2, 2), (2, 2)]


def test_frozen_norm_keeps_its_statistics_in_training() -> None:
    norm = FrozenBatchNorm2d(4).train()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(norm(x), (x - 1) / (4 + 1e-5) ** 0.5)
    assert norm.running_mean.tolist() == [1.0] * 4
    assert norm(x.bfloat16()).dtype == torch.bfloat16
