"""Recorded images to what an image trunk takes: size and normalisation, on the model's device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_ft.nn.clip import CLIP_MEAN, CLIP_STD
from vla_ft.policies.act.config import Config, Pixel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pixels:
    """How pixels are prepared. ``size`` None keeps the recorded one; ``crop`` resizes as CLIP does (``clip_resized``).

    ``statistics``: mean and std by camera, where they are not ``mean`` and ``std``.
    """

    mean: Pixel = IMAGENET_MEAN
    std: Pixel = IMAGENET_STD
    size: tuple[int, int] | None = None
    crop: bool = False
    bicubic: bool = False
    statistics: Mapping[str, tuple[Pixel, Pixel]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> Pixels:
        """What the configured trunk was trained with."""
        if config.backbone == "clip_vit_b32":
            size = config.image_size or (224, 224)
            own = cls(CLIP_MEAN, CLIP_STD, size, crop=config.image_size is None, bicubic=True)
        else:
            own = cls(size=config.image_size)
        return cls(own.mean, own.std, own.size, own.crop, own.bicubic, config.pixel_statistics)

    def __call__(self, images: Tensor, camera: str | None = None) -> Tensor:
        """uint8 [B, H, W, 3] to normalised float32 [B, 3, h, w].

        Done here and not in the workers: bytes are a quarter of what would have to be copied to the device.
        """
        mean, std = self.statistics.get(camera or "", (self.mean, self.std))
        return normalized(self._resized(images.permute(0, 3, 1, 2).float()), mean, std)

    def _resized(self, images: Tensor) -> Tensor:
        """Levels [B, 3, H, W] from 0 to 255, to [0, 1] in the wanted size."""
        if self.crop and self.size is not None:
            return clip_resized(images, self.size[0]) / 255
        if self.size is None or self.size == tuple(images.shape[2:]):
            return images / 255
        if self.bicubic:
            return _bicubic(images, self.size) / 255
        return F.interpolate(images / 255, self.size, mode="bilinear", align_corners=False, antialias=True)

    @property
    def words(self) -> dict[str, str]:
        """What decides the numbers besides the trunk, in words."""
        way = "bicubic" if self.bicubic else "bilinear with antialias"
        size = f"{self.size[0]}x{self.size[1]}, {way}" if self.size is not None else "as recorded"
        names = {IMAGENET_MEAN: "ImageNet", CLIP_MEAN: "CLIP"}
        own = ", ".join(f"{camera} mean {mean} std {std}" for camera, (mean, std) in self.statistics.items())
        return {"images": size + (", centre" if self.crop else ""), "normalisation": own or names[self.mean]}


def normalized(images: Tensor, mean: Pixel = IMAGENET_MEAN, std: Pixel = IMAGENET_STD) -> Tensor:
    """Float images [B, 3, H, W] in [0, 1], each channel by its mean and standard deviation."""
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def clip_resized(images: Tensor, size: int) -> Tensor:
    """CLIP's preprocessing of levels float [B, 3, H, W] (0 to 255): the short side to ``size``, then the centre square.

    As OpenAI's (torchvision's ``Resize`` and ``CenterCrop`` of PIL images): the long side is rounded down, the crop's
    place to the even pixel.
    """
    height, width = images.shape[2:]
    short = min(height, width)
    target = tuple(size if side == short else int(size * side / short) for side in (height, width))
    if target != (height, width):
        images = _bicubic(images, (target[0], target[1]))
    top, left = (round((side - size) / 2.0) for side in target)
    return images[:, :, top : top + size, left : left + size]


def _bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialias, as PIL: first the rows, then the columns, each to whole levels from 0 to 255, which
    bicubic weights overshoot."""
    for target in ((images.shape[2], size[1]), size):
        if target != tuple(images.shape[2:]):
            images = F.interpolate(images, target, mode="bicubic", align_corners=False, antialias=True)
            images = torch.round(images).clamp(0, 255)
    return images
