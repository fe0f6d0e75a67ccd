"""The vision-language model as one part: images and an instruction to the feature that the head acts on."""

from __future__ import annotations

from torch import Tensor, nn

from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.language import Language, Projector
from vla_ft.policies.cogact.vision import VisionTowers


class Vlm(nn.Module):
    """Both towers, the projector and the language model (Prismatic, Karamcheti et al. 2024, arXiv 2402.07865)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dino, siglip = config.towers
        self.vision = VisionTowers(dino, siglip, config.image_size)
        self.projector = Projector(dino.width + siglip.width, config.llama.width)
        self.llm = Language(config.llama)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The cognition feature [B, 1, llm width] of images uint8 [B, S, S, 3] and prompts int64 [B, L] with their mask
        bool [B, L]."""
        return self.llm.cognition(self.projector(self.vision(images)), tokens, mask)
