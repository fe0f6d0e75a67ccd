"""From camera images to tokens with positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ft.nn.positions import sine_map

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_normalize(images: Tensor) -> Tensor:
    """Float images [B, 3, H, W] in [0, 1] to zero mean and unit variance over ImageNet."""
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images - mean) / std


class VisionTokens(nn.Module):
    """One trunk for all cameras, and a 1x1 convolution to the token width.

    ``trunk`` maps [B, 3, H, W] to [B, C, h, w] and states C as ``out_channels``.
    """

    def __init__(
        self,
        trunk: nn.Module,
        out_channels: int,
        dim: int,
        layout: Literal["width", "sequence"],
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.project = nn.Conv2d(out_channels, dim, 1)
        self.dim = dim
        self.layout = layout
        self.image_size = image_size

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] as recorded to what the trunk takes; float [B, C, H, W] is taken as prepared already.

        Done here and not in the workers: bytes are a quarter of what would have to be copied to the device.
        """
        if images.dtype != torch.uint8:
            return images
        scaled = images.permute(0, 3, 1, 2).float() / 255
        if self.image_size is not None and self.image_size != scaled.shape[2:]:
            scaled = F.interpolate(scaled, self.image_size, mode="bilinear", align_corners=False, antialias=True)
        return imagenet_normalize(scaled).to(self.project.weight.dtype)

    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Trunk output [B, C, h, w] of prepared images, one [B, 3, H, W] a camera; equal sizes in one batch."""
        if len({image.shape for image in images}) == 1:
            return list(self.trunk(torch.cat(list(images))).chunk(len(images)))
        return [self.trunk(image) for image in images]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Trunk output, one [B, C, h, w] a camera, to tokens [B, N, D] and their positions [1, N, D]."""
        maps = [self.project(one) for one in features]
        places = [sine_map(self.dim, m.shape[2], m.shape[3], m.device).to(m.dtype) for m in maps]
        if self.layout == "width":
            maps, places = [torch.cat(maps, dim=3)], [torch.cat(places, dim=3)]
        return _tokens(maps), _tokens(places)


def _tokens(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, D, h, w], each read row by row, to [B, sum of h * w, D]."""
    return torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2)
