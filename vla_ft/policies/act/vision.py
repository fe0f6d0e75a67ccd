"""From camera images to tokens with positions: places of feature maps, or one token of two fused cameras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vla_ft.nn.camera_fusion import CameraFusion, FusionName
from vla_ft.nn.positions import sine_map
from vla_ft.policies.act.pixels import Pixels


class Vision(nn.Module):
    """Base of both: one trunk for all cameras. ``trunk`` maps [B, 3, H, W] to [B, C, h, w]; with ``pooled=True``, which
    only fusion asks for, to [B, C]."""

    pooled = False

    def __init__(self, trunk: nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.trunk = trunk
        self.pixels = pixels

    def prepare(self, images: Tensor, camera: str | None = None) -> Tensor:
        """uint8 [B, H, W, 3] as recorded to what the trunk takes; float [B, C, H, W] is taken as prepared already."""
        if images.dtype != torch.uint8:
            return images
        return self.pixels(images, camera).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the trained weights that come after the trunk."""
        raise NotImplementedError

    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Trunk output of prepared images, one [B, 3, H, W] a camera; equal sizes in one batch."""
        if len({image.shape for image in images}) == 1:
            return list(self._run(torch.cat(list(images))).chunk(len(images)))
        return [self._run(image) for image in images]

    def _run(self, images: Tensor) -> Tensor:
        return self.trunk(images, pooled=True) if self.pooled else self.trunk(images)


class VisionTokens(Vision):
    """Every place of every feature map is a token, by a 1x1 convolution to the token width."""

    def __init__(
        self,
        trunk: nn.Module,
        out_channels: int,
        dim: int,
        layout: Literal["width", "sequence"],
        pixels: Pixels,
    ) -> None:
        super().__init__(trunk, pixels)
        self.project = nn.Conv2d(out_channels, dim, 1)
        self.dim = dim
        self.layout = layout

    @property
    def dtype(self) -> torch.dtype:
        """See ``Vision.dtype``."""
        return self.project.weight.dtype

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Trunk output, one [B, C, h, w] a camera, to tokens [B, N, D] and their positions [1, N, D]."""
        maps = [self.project(one) for one in features]
        places = [sine_map(self.dim, m.shape[2], m.shape[3], m.device).to(m.dtype) for m in maps]
        if self.layout == "width":
            maps, places = [torch.cat(maps, dim=3)], [torch.cat(places, dim=3)]
        return _tokens(maps), _tokens(places)


class FusedCameras(Vision):
    """Pooled features of two cameras, fused into a single token at a learned position.

    The trunk's features are brought to the token width by a linear map without bias where they have another width (as
    the guide's encoders do); the fusion works at that width. Both are trained whether or not the trunk is frozen.
    """

    pooled = True

    def __init__(self, trunk: nn.Module, out_channels: int, dim: int, fusion: FusionName, pixels: Pixels) -> None:
        super().__init__(trunk, pixels)
        self.project = nn.Identity() if out_channels == dim else nn.Linear(out_channels, dim, bias=False)
        self.fusion = CameraFusion(fusion, dim)
        self.place = nn.Parameter(torch.randn(1, 1, dim))

    @property
    def dtype(self) -> torch.dtype:
        """See ``Vision.dtype``."""
        return self.place.dtype

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Pooled features, [B, C] of the left and of the right camera, to a token [B, 1, D] and its place [1, 1, D]."""
        left, right = (self.project(one) for one in features)
        return self.fusion(left, right).unsqueeze(1), self.place


def _tokens(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, D, h, w], each read row by row, to [B, sum of h * w, D]."""
    return torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2)
