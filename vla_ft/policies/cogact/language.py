"""The language model and what goes into it: Llama 2 over [BOS, image patches, prompt, EOS].

The state after the last norm at the EOS is the "cognition feature" (``vla/cogactvlm.py`` of microsoft/CogACT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from vla_ft.policies.cogact.config import LlamaShape


class Projector(nn.Module):
    """Fused patch features [B, N, vision] to language tokens [B, N, llm]: three layers, the first four times wider."""

    def __init__(self, vision: int, llm: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(vision, 4 * vision), nn.GELU(), nn.Linear(4 * vision, llm), nn.GELU(), nn.Linear(llm, llm)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """A token for every patch."""
        return self.projector(patches)


class Language(nn.Module):
    """Llama 2 without logits: transformers' model, and the published output layer, held but neither run nor trained."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.model = LlamaModel(
            LlamaConfig(
                vocab_size=shape.vocabulary,
                hidden_size=shape.width,
                intermediate_size=shape.feedforward,
                num_hidden_layers=shape.depth,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.heads,
                rms_norm_eps=1e-5,
                max_position_embeddings=4096,
                use_cache=False,
            )
        )
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False).requires_grad_(False)

    def forward(self, patches: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """States [B, N + L, width] after the last norm, of patches [B, N, width] put behind the first of ``tokens``
        int64 [B, L]; ``mask`` bool [B, L] is True at real tokens, which come first."""
        words = self.model.embed_tokens(tokens)
        whole = torch.cat((words[:, :1], patches.to(words.dtype), words[:, 1:]), dim=1)
        seen = torch.cat((mask[:, :1], mask.new_ones(patches.shape[:2]), mask[:, 1:]), dim=1)
        return self.model(inputs_embeds=whole, attention_mask=seen, use_cache=False).last_hidden_state

    def cognition(self, patches: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The state at each sample's last real token, [B, 1, width]."""
        states = self(patches, tokens, mask)
        last = patches.shape[1] + mask.sum(1) - 1
        return states[torch.arange(len(states), device=states.device), last].unsqueeze(1)
