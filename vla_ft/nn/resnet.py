"""ResNet-18, 34 and 50 without their classifier, with frozen batch norm: an image trunk under torchvision's names."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ResNetName = Literal["resnet18", "resnet34", "resnet50"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine part are constants: small fine-tuning batches would spoil them.

    Buffers ``weight``, ``bias``, ``running_mean``, ``running_var``, each float32 [channels].
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to the same shape."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34 (He et al. 2015, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, width, stride, dilation)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = FrozenBatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: the block of ResNet-50, with the stride on the 3x3 convolution."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilation)
        self.bn2 = FrozenBatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 * width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


BlockType = type[BasicBlock] | type[Bottleneck]
_SHAPES: dict[str, tuple[BlockType, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """The convolutional trunk. ``out_channels`` is 512 for ResNet-18 and 34, 2048 for ResNet-50.

    ``dilation`` keeps the last stage at stride 16 by dilating its convolutions instead of striding.
    """

    def __init__(self, name: ResNetName, dilation: bool = False) -> None:
        super().__init__()
        block, depths = _SHAPES[name]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2, dilate=dilation)
        self.out_channels = 512 * block.expansion
        self.stride = 16 if dilation else 32
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, pooled: bool = False) -> Tensor:
        """Normalised images [B, 3, H, W] to features [B, out_channels, ceil(H / stride), ceil(W / stride)]; ``pooled``:
        to their mean over all places, [B, out_channels]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3)) if pooled else x

    def blocks(self) -> list[nn.Module]:
        """The residual blocks, first to last."""
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]


def _conv3x3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _stage(
    block: BlockType,
    inputs: int,
    width: int,
    depth: int,
    stride: int,
    dilate: bool = False,
) -> nn.Sequential:
    """``depth`` blocks. A dilated stage keeps its resolution; its first block still sees its input undilated."""
    stride, dilation = (1, stride) if dilate else (stride, 1)
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), FrozenBatchNorm2d(outputs))
    first = block(inputs, width, stride, 1, downsample)
    return nn.Sequential(first, *(block(outputs, width, 1, dilation, None) for _ in range(depth - 1)))
