"""The posterior of ACT's conditional VAE: which latent does a demonstrated action chunk have?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_ft.nn.detr import Encoder, LayerShape
from vla_ft.nn.positions import sinusoid_table


class PosteriorEncoder(nn.Module):
    """Transformer over [CLS, proprioception, action 1..K]; the CLS output gives mean and log variance (ACT, §IV-C)."""

    positions: Tensor

    def __init__(
        self, shape: LayerShape, depth: int, *, chunk_size: int, action_dim: int, proprio_dim: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.cls_token = nn.Embedding(1, shape.dim)
        self.project_proprio = nn.Linear(proprio_dim, shape.dim) if proprio_dim else None
        self.project_action = nn.Linear(action_dim, shape.dim)
        self.encoder = Encoder(shape, depth)
        self.to_latent = nn.Linear(shape.dim, 2 * latent_dim)
        self.register_buffer("positions", sinusoid_table(chunk_size + self.prefix, shape.dim))

    @property
    def prefix(self) -> int:
        """Tokens before the actions."""
        return 1 if self.project_proprio is None else 2

    def encode(self, action: Tensor, real: Tensor, proprio: Tensor | None) -> Tensor:
        """All encoder outputs [B, prefix + K, D]. Steps where ``real`` is False are not attended to."""
        batch = action.shape[0]
        tokens = [self.cls_token.weight.expand(batch, 1, -1)]
        if self.project_proprio is not None:
            tokens.append(self.project_proprio(proprio).unsqueeze(1))
        tokens.append(self.project_action(action))
        ignore = torch.cat((real.new_zeros(batch, self.prefix), ~real), dim=1)
        return self.encoder(torch.cat(tokens, dim=1), self.positions, ignore)

    def forward(self, action: Tensor, real: Tensor, proprio: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each [B, Z], from ``action`` [B, K, A], ``real`` bool [B, K], ``proprio`` [B, P]."""
        mean, log_variance = self.to_latent(self.encode(action, real, proprio)[:, 0]).chunk(2, dim=-1)
        return mean, log_variance


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) from N(0, 1), per latent number [B, Z] (Kingma & Welling 2013, appendix B)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())
