"""PaliGemma (Beyer et al. 2024, arXiv 2407.07726) as π0 reads it: keys and values of a picture and a prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_ft.policies.pizero.attention import visibility
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.gemma import KeysValues, LayerShape, Stack
from vla_ft.policies.pizero.vision import VisionTower, scale_pixels

FIRST_POSITION = 1
"""Rotary positions begin at 1, as published; experts count from 1 again. Visible where the two bases differ."""
PAD, END, BEGIN = 0, 1, 2
"""Token numbers of PaliGemma: padding, end (never written), beginning."""


def is_fixed(name: str, layers: int) -> bool:
    """Whether published training leaves this weight of ``PaliGemma`` alone: the token embedding, and what follows the
    last layer's keys. (Its value projection is among them, although the experts do read the values.)"""
    last = f"stack.layers.{layers - 1}."
    read = (f"{last}input_layernorm.", f"{last}self_attn.q_proj.", f"{last}self_attn.k_proj.")
    return name.startswith("embed_tokens.") or (name.startswith(last) and not name.startswith(read))


class PaliGemma(nn.Module):
    """Picture and prompt through SigLIP and Gemma. Nothing that comes after them changes their keys and values."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.vlm_width, padding_idx=PAD)
        self.vision = VisionTower(config)
        self.projector = nn.Linear(config.vision_width, config.vlm_width)
        shape = LayerShape(
            width=config.vlm_width,
            inner=config.vlm_mlp,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            soft_cap=config.soft_cap,
            attention=config.attention,
        )
        stack = Stack(shape, config.layers, config.vlm_rope_theta, normed=False, read=False)
        self.stack = stack
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not is_fixed(name, config.layers))

    def forward(self, images: Tensor, text: Tensor, valid: Tensor) -> list[KeysValues]:
        """Keys and values of every layer, for the picture's tokens followed by those of the prompt.

        ``images`` uint8 [B, H, W, 3] or pixels [B, 3, H, W] in [-1, 1]; ``text`` int64 [B, N] padded on the right;
        ``valid`` bool [B, S] over all tokens.
        """
        _, kept = self.stack(self.embed(images, text), FIRST_POSITION, visibility(valid, 0, 0))
        return kept

    def embed(self, images: Tensor, text: Tensor) -> Tensor:
        """Inputs of Gemma [B, S, D] before they are scaled: the picture's are smaller by the root of the width."""
        picture = self.projector(self.vision(scale_pixels(images))) / self.config.vlm_width**0.5
        words = self.embed_tokens(text) * (text != PAD)[..., None]
        return torch.cat((picture, words.to(picture.dtype)), dim=1)
