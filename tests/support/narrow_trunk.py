"""ACT with an image trunk of the same blocks and an eighth of the width: what is sent between processes stays small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from vla_ft.data.sample import DatasetDescription
from vla_ft.nn.resnet import BasicBlock, ResNet, _stage
from vla_ft.policies.act import model
from vla_ft.policies.base import Batch

WIDTHS = (8, 16, 32, 64)
DESCRIPTION = DatasetDescription(
    name="t", fps=10.0, cameras={"top": (32, 32)}, action_names=("a", "b", "c"), action_units=("rad",) * 3,
    proprio_names=("d", "e"), proprio_units=("rad",) * 2, action_kind="joint", action_mode="absolute", gripper="none",
)  # fmt: skip


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


def batch(size: int = 2) -> Batch:
    """Always the same samples of DESCRIPTION, for chunks of four."""
    generator = torch.Generator().manual_seed(1)
    return {
        "image_top": torch.randint(0, 256, (size, 32, 32, 3), generator=generator, dtype=torch.uint8),
        "proprio": torch.randn(size, 2, generator=generator),
        "action": torch.randn(size, 4, 3, generator=generator),
        "action_pad_mask": torch.ones(size, 4, dtype=torch.bool),
    }
