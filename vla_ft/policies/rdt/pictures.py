"""A sample's pictures as the tokens that the core looks at: computed, or as they were cached, with grey for none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.policies.base import FEATURE_PREFIX, Batch, FrozenFeatures
from vla_ft.policies.rdt.config import VisionConfig
from vla_ft.policies.rdt.vision import with_background

BACKGROUND = FEATURE_PREFIX + "background"
Cameras = Sequence[str | None]
"""The camera in each place, in order; None leaves it grey."""


def image_tokens(tower: nn.Module, cameras: Cameras, batch: Batch, valid: Tensor) -> Tensor:
    """[B, T * C * N, W]: time first, then cameras; pictures that are not ``valid`` bool [B, T, C] are grey."""
    found, background = _seen(tower, keys_of(cameras), batch)
    size, steps = valid.shape[:2]
    empty = background.expand(size, steps, *background.shape[-2:])
    columns = [empty if camera is None else found[IMAGE_PREFIX + camera] for camera in cameras]
    tokens = torch.stack([column.to(background.dtype) for column in columns], dim=2)
    shown = with_background(tokens.flatten(1, 2), valid.flatten(1), background)
    return shown.flatten(1, 2)


def picture_tokens(tower: nn.Module, pictures: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """[1, n * N, W] of ``pictures``, each uint8 [1, H, W, 3] of any size or None, which is grey."""
    shown = [picture for picture in pictures if picture is not None]
    groups, background = tower(shown or [torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device=device)])
    found = iter(groups)
    return torch.cat([background if picture is None else next(found)[0] for picture in pictures])[None]


def frozen_tower(
    compute: Callable[[Batch], dict[str, Tensor]], cameras: Cameras, vision: VisionConfig
) -> FrozenFeatures:
    """The tower's features, declared: they depend on one picture alone. The grey one's come with every frame."""
    keys = tuple(keys_of(cameras))
    return FrozenFeatures(
        module="vision",
        inputs=keys,
        replaces=keys,
        outputs=(*(FEATURE_PREFIX + key for key in keys), BACKGROUND),
        scope="frame",
        compute=compute,
        settings={
            "trunk": f"SigLIP {vision.depth} x {vision.hidden_size}, patches of {vision.patch_size}",
            "images": f"square with grey borders, {vision.image_size} pixels, bicubic",
            "normalisation": "mean 0.5, std 0.5",
        },
    )


def features(tower: nn.Module, cameras: Cameras, batch: Batch) -> dict[str, Tensor]:
    """What the declaration computes, of samples of one observation step."""
    found, background = _seen(tower, keys_of(cameras), batch)
    rows = {FEATURE_PREFIX + key: tokens[:, -1] for key, tokens in found.items()}
    return rows | {BACKGROUND: background.expand(len(next(iter(rows.values()))), -1, -1)}


def keys_of(cameras: Cameras) -> list[str]:
    """Batch keys of the pictures that there are."""
    return [IMAGE_PREFIX + camera for camera in cameras if camera is not None]


def _seen(tower: nn.Module, keys: Sequence[str], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens [B, T, N, W] of each camera, computed or as they were cached, and of the grey picture [N, W]."""
    if BACKGROUND in batch:
        return {key: batch[FEATURE_PREFIX + key] for key in keys}, batch[BACKGROUND][0, 0]
    pictures = [batch[key] for key in keys]
    groups, background = tower([picture.flatten(0, 1) for picture in pictures])
    shaped = [tokens.unflatten(0, picture.shape[:2]) for tokens, picture in zip(groups, pictures, strict=True)]
    return dict(zip(keys, shaped, strict=True)), background
