"""ACT with an image trunk of the same blocks and an eighth of the width: what is sent between processes stays small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from vla_ft.nn.resnet import BasicBlock, ResNet, _stage
from vla_ft.policies.act import model

WIDTHS = (8, 16, 32, 64)


class NarrowResNet(ResNet):
    """Four stages of one block each."""

    def __init__(self, name: str, dilation: bool = False) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.Identity(), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        inputs = WIDTHS[0]
        for number, width in enumerate(WIDTHS, 1):
            setattr(self, f"layer{number}", _stage(BasicBlock, inputs, width, 1, stride=1 if number == 1 else 2))
            inputs = width
        self.out_channels, self.stride = WIDTHS[-1], 32


@contextlib.contextmanager
def narrow_trunk() -> Iterator[None]:
    """Inside, ACT builds itself with the narrow trunk."""
    usual, model.ResNet = model.ResNet, NarrowResNet
    try:
        yield
    finally:
        model.ResNet = usual
