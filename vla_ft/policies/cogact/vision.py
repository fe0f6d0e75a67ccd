"""The two image towers: DINOv2 ViT-L/14 with registers, and SigLIP so400m/14, both at 224 and read before their end.

Dosovitskiy et al. 2021 (2010.11929), Oquab et al. 2023 (2304.07193), Darcet et al. 2023 (2309.16588), Zhai et al. 2023
(2303.15343). Parameters carry timm's names (``vit_large_patch14_reg4_dinov2``, ``vit_so400m_patch14_siglip_224``):
the published checkpoints hold them; timm itself needs torchvision and stays out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN_STD = {
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Of pixels in 0..1."""


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """Sizes of a vision transformer."""

    width: int
    depth: int
    heads: int
    feedforward: int
    registers: int = 0
    """Register tokens beside a class token (DINOv2); 0 for neither."""
    layer_scale: bool = False
    pool: bool = False
    """Hold the attention pool of SigLIP's classifier, which nothing reads here."""


DINO = TowerShape(width=1024, depth=24, heads=16, feedforward=4096, registers=4, layer_scale=True)
SIGLIP = TowerShape(width=1152, depth=27, heads=16, feedforward=4304, pool=True)


def normalize_pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, S, S, 3] to float32 [B, 3, S, S] of zero mean and unit variance by these numbers of pixels in 0..1."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    return (scaled - scaled.new_tensor(mean)[:, None, None]) / scaled.new_tensor(std)[:, None, None]


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values. [B, L, width] to the same.

    ``linear``: which kind of layers.
    """

    def __init__(self, width: int, heads: int, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Every place attends to every other."""
        batch, length, width = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two linear layers with a GELU between. [..., width] to the same."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Each place by itself."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block, its branches scaled by channel where the tower has it. Keeps [B, L, width]."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = Attention(shape.width, shape.heads)
        self.ls1 = _LayerScale(shape.width) if shape.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = Mlp(shape.width, shape.feedforward)
        self.ls2 = _LayerScale(shape.width) if shape.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then the MLP, each added to what went in."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Tower(nn.Module):
    """Patch features of images: float [B, 3, S, S], normalised, to [B, (S/14)^2, width].

    They are the output of the last block but one, without the final norm, as Prismatic and CogACT read them. What comes
    after is held, frozen, because published files hold it and ours are written back.
    """

    def __init__(self, shape: TowerShape, image_size: int) -> None:
        super().__init__()
        patches = (image_size // 14) ** 2
        self.patch_embed = _PatchEmbed(shape.width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches, shape.width))
        if shape.registers:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
            self.reg_token = nn.Parameter(torch.zeros(1, shape.registers, shape.width))
        self.registers = shape.registers
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        unread: list[nn.Module] = [self.blocks[-1], self.norm]
        if shape.pool:
            self.attn_pool = _AttentionPool(shape)
            unread.append(self.attn_pool)
        for module in unread:
            module.requires_grad_(False)

    def read_blocks(self) -> list[nn.Module]:
        """The blocks that are run."""
        return list(self.blocks)[:-1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Patches row by row, without class token and registers."""
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = 0
        if self.registers:  # they have no place in the picture, hence no position
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x), dim=1)
            prefix = 1 + self.registers
        for block in self.read_blocks():
            x = block(x)
        return x[:, prefix:]


class VisionTowers(nn.Module):
    """Both towers: images uint8 [B, S, S, 3] to fused patch features [B, N, dino + siglip]."""

    def __init__(self, dino: TowerShape, siglip: TowerShape, image_size: int) -> None:
        super().__init__()
        self.dino_featurizer = Tower(dino, image_size)
        self.siglip_featurizer = Tower(siglip, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Each tower sees the pixels by its own mean and deviation."""
        dtype = self.dino_featurizer.pos_embed.dtype
        return self.fuse(*(normalize_pixels(images, *MEAN_STD[name]).to(dtype) for name in ("dino", "siglip")))

    def fuse(self, dino: Tensor, siglip: Tensor) -> Tensor:
        """The same from normalised pixels, float [B, 3, S, S] each."""
        return torch.cat((self.dino_featurizer(dino), self.siglip_featurizer(siglip)), dim=2)

    def blocks(self) -> list[nn.Module]:
        """The blocks that are run, DINO's first."""
        return [*self.dino_featurizer.read_blocks(), *self.siglip_featurizer.read_blocks()]


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=14, stride=14)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _AttentionPool(nn.Module):
    """Held, never run."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        width = shape.width
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, shape.feedforward)
