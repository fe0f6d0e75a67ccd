"""The transformer itself: a chunk of noisy actions, looking at language and pictures in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vla_ft.policies.rdt.attention import Block, Kept, Mlp, ScaleNorm
from vla_ft.policies.rdt.config import NormKind
from vla_ft.policies.rdt.embeddings import ScalarEmbedder, image_table, language_table, sequence_table


class FinalLayer(nn.Module):
    """Norm and MLP from tokens to unified action vectors."""

    def __init__(self, dim: int, out: int, norm: NormKind) -> None:
        super().__init__()
        self.norm_final = ScaleNorm(dim, norm)
        self.ffn_final = Mlp(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, out]."""
        return self.ffn_final(self.norm_final(x))


class Core(nn.Module):
    """Sequence [time, rate, state, actions], through blocks that look at language (even) and pictures (odd).

    Names of parameters are those of published checkpoints behind ``model.``.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        horizon: int,
        out: int,
        language_tokens: int,
        image_grid: tuple[int, int],
        patches: int,
        norm: NormKind = "variance",
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.x_pos_embed = nn.Parameter(sequence_table(dim, horizon))
        self.lang_cond_pos_embed = nn.Parameter(language_table(dim, language_tokens))
        self.img_cond_pos_embed = nn.Parameter(image_table(dim, image_grid, patches))
        self.t_embedder = ScalarEmbedder(dim)
        self.freq_embedder = ScalarEmbedder(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, norm) for _ in range(depth))
        self.final_layer = FinalLayer(dim, out, norm)
        self._start()

    def forward(
        self,
        x: Tensor,
        rate: Tensor,
        time: Tensor,
        language: Tensor,
        images: Tensor,
        language_mask: Tensor | None = None,
        kept: Sequence[Kept] | None = None,
    ) -> Tensor:
        """Predicted vectors [B, H, out].

        ``x`` [B, 1 + H, D]: the state token and the noisy actions, adapted. ``rate`` [B] in Hz, ``time`` [B] or [1].
        ``language`` [B, L, D] with ``language_mask`` bool [B, L] (True where real); ``images`` [B, N, D], N exactly.
        ``kept``: one a block (``begin``), for calls that differ in ``x`` and ``time`` alone.
        """
        size = x.shape[0]
        moment = self.t_embedder(time).expand(size, -1)[:, None]
        x = torch.cat((moment, self.freq_embedder(rate)[:, None], x), dim=1) + self.x_pos_embed
        language = language + self.lang_cond_pos_embed[:, : language.shape[1]]
        images = images + self.img_cond_pos_embed
        conditions = ((language, language_mask), (images, None))
        for number, block in enumerate(self.blocks):
            x = block(x, *conditions[number % 2], None if kept is None else kept[number])
        return self.final_layer(x)[:, -self.horizon :]

    def begin(self) -> list[Kept]:
        """What the blocks keep of the conditions of one chunk, empty."""
        return [Kept() for _ in self.blocks]

    def _start(self) -> None:
        """Xavier-uniform linears without bias, small time codes, and a last layer that predicts zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embedder in (self.t_embedder, self.freq_embedder):
            for layer in embedder.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.final_layer.ffn_final.fc2.weight)
