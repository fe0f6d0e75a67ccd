"""From camera pictures to tokens: square, 384 pixels, through SigLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from vla_ft.policies.rdt.config import VisionConfig

BACKGROUND = 127
"""Grey of borders and of pictures that are missing: ``int(0.5 * 255)``, as published."""


class _Siglip(SiglipVisionModel):
    """SigLIP with plain starting values: transformers' own look at numbers, which a forecast does not have."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class ImageTower(nn.Module):
    """SigLIP's image tower without its pooling head: the tokens after the last norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.size = config.image_size
        self.tower = _Siglip(
            SiglipVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.feedforward_dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                vision_use_head=False,
            )
        )

    def forward(self, pictures: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Tokens [n, N, D] of each uint8 [n, H, W, 3], and those of a grey picture [N, D]."""
        pixels = [prepare(group, self.size) for group in pictures]
        grey = torch.full_like(pixels[0][:1], _scaled(BACKGROUND))
        weight = self.tower.embeddings.patch_embedding.weight
        tokens = self.tower(pixel_values=torch.cat([*pixels, grey]).to(weight.dtype)).last_hidden_state
        *groups, last = tokens.split([len(group) for group in (*pixels, grey)])
        return groups, last[0]

    def layers(self) -> list[nn.Module]:
        """The tower's repeated layers."""
        return list(self.tower.encoder.layers)


def prepare(pictures: Tensor, size: int) -> Tensor:
    """uint8 [n, H, W, 3] to float [n, 3, size, size] in [-1, 1]: bordered to a square, resized (bicubic), centred."""
    values = pictures.permute(0, 3, 1, 2).float()
    values = _squared(values)
    if values.shape[-1] != size:
        values = F.interpolate(values, (size, size), mode="bicubic", align_corners=False, antialias=True)
        values = values.round().clamp(0, 255)  # the published resizer works on bytes
    return values / 127.5 - 1


def with_background(values: Tensor, valid: Tensor, background: Tensor) -> Tensor:
    """``values`` [B, n, ...] with ``background`` [...] in place of pictures that are not ``valid`` bool [B, n]."""
    chosen = valid.view(*valid.shape, *[1] * (values.ndim - 2))
    return torch.where(chosen, values, background.to(values.dtype))


def _squared(values: Tensor) -> Tensor:
    height, width = values.shape[-2:]
    long = max(height, width)
    top, left = (long - height) // 2, (long - width) // 2
    return F.pad(values, (left, long - width - left, top, long - height - top), value=BACKGROUND)


def _scaled(level: int) -> float:
    return level / 127.5 - 1
