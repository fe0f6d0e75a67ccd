"""RDT: a chunk of unified action vectors from pictures, an instruction's embedding, the state and the control rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ft.policies.base import Batch, FrozenFeatures, Loss, Model
from vla_ft.policies.rdt import metrics, pictures
from vla_ft.policies.rdt.attention import Kept
from vla_ft.policies.rdt.conditions import Conditions, hidden, of_batch, rows_of
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.core import Core
from vla_ft.policies.rdt.diffusion import add_noise, solve
from vla_ft.policies.rdt.embeddings import Adaptor
from vla_ft.policies.rdt.vector import WIDTH
from vla_ft.policies.rdt.vision import ImageTower

TOGETHER = 4
"""Chunks that are sampled at once: what the blocks keep of one's pictures takes 0.47 GiB in rdt-1b (bf16)."""


class Rdt(Model):
    """Adaptors and core with the names of published checkpoints, and the frozen image tower as ``vision``.

    Batch: ``state`` float [B, 1, 128] with ``state_mask`` and ``action_mask`` [B, 128]; ``ctrl_freq`` int [B];
    ``lang_tokens`` [B, L, W] with ``lang_mask`` bool [B, L]; ``image_<camera>`` uint8 [B, T, H, W, 3] with
    ``image_valid`` bool [B, T, 3], in the order of ``Config.cameras``; for the loss ``action`` [B, H, 128], and in
    training ``state_std`` and ``state_mean`` [B, 128] and ``lang_empty`` [B, n, W]. What the frozen tower gave may
    stand for the pictures: ``feature_image_<camera>`` and ``feature_background`` [B, T, N, W].
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.cameras = config.cameras.in_order
        dim, vision = config.hidden_size, config.vision
        self.vision = ImageTower(vision)
        self.lang_adaptor = Adaptor(config.language_adaptor, config.language.width, dim)
        self.img_adaptor = Adaptor(config.image_adaptor, vision.hidden_size, dim)
        self.state_adaptor = Adaptor(config.state_adaptor, 2 * WIDTH, dim)
        self.model = Core(
            dim=dim,
            depth=config.depth,
            heads=config.heads,
            horizon=config.chunk_size,
            out=WIDTH,
            language_tokens=config.language.max_tokens,
            image_grid=(config.history, len(self.cameras)),
            patches=vision.tokens,
            norm=config.norm,
        )
        _start_adaptors(self)

    def forward(self, batch: Batch) -> Loss:
        """Mean squared error over all 128 dimensions, as published. Conditions are hidden at random in training."""
        given = of_batch(batch)
        if self.training:
            given = hidden(given, batch, self.config.conditions)
        action = batch["action"]
        noise = torch.randn_like(action)
        time = torch.randint(0, self.config.train_steps, (len(action),), device=action.device)
        return Loss(self.loss(given, self.image_tokens(batch, given.valid), action, noise, time))

    def loss(self, given: Conditions, images: Tensor, action: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The loss with noise [B, H, 128] and levels int [B] given; ``images`` [B, T * C * N, W] are image tokens."""
        noisy = add_noise(action, noise, time, self.config.train_steps)
        predicted = self.denoise(given, *self.adapt(given, images), noisy, time)
        target = action if self.config.prediction == "sample" else noise
        return F.mse_loss(predicted.float(), target.float())

    def sample(self, batch: Batch) -> Tensor:
        """Unified action chunk [B, H, 128], zero outside the robot's places; noise from torch's default generator."""
        given = of_batch(batch)
        shape = (len(given.state), self.config.chunk_size, WIDTH)
        noise = torch.randn(shape, device=given.state.device, dtype=given.state.dtype)
        return self.sample_from(given, self.image_tokens(batch, given.valid), noise)

    def sample_from(self, given: Conditions, images: Tensor, noise: Tensor, *, keep: bool = True) -> Tensor:
        """``sample`` from given noise [B, H, 128].

        ``keep``: compute the keys and values of the conditions once a chunk, not in each step of the solver.
        """
        parts = [slice(start, start + TOGETHER) for start in range(0, len(noise), TOGETHER)]
        return torch.cat([self._sample_rows(rows_of(given, rows), images[rows], noise[rows], keep) for rows in parts])

    def _sample_rows(self, given: Conditions, images: Tensor, noise: Tensor, keep: bool) -> Tensor:
        language, images = self.adapt(given, images)
        config, kept = self.config, self.model.begin() if keep else None
        clean = solve(
            lambda noisy, time: self.denoise(given, language, images, noisy, time, kept),
            noise,
            steps=config.inference_steps,
            train_steps=config.train_steps,
            prediction=config.prediction,
        )
        return clean * given.action_mask

    def adapt(self, given: Conditions, images: Tensor) -> tuple[Tensor, Tensor]:
        """Language [B, L, D] and image tokens [B, N, D] at the core's width."""
        return self.lang_adaptor(given.language), self.img_adaptor(images)

    def denoise(
        self,
        given: Conditions,
        language: Tensor,
        images: Tensor,
        noisy: Tensor,
        time: Tensor,
        kept: Sequence[Kept] | None = None,
    ) -> Tensor:
        """What the network says of ``noisy`` [B, H, 128] at ``time`` int [B] or [1], with what ``adapt`` gave.

        ``kept`` (``Core.begin``): for calls that differ in ``noisy`` and ``time`` alone.
        """
        tokens = torch.cat((given.state, noisy), dim=1)
        masks = torch.cat((given.mask, given.action_mask.expand_as(noisy)), dim=1)
        tokens = torch.cat((tokens, masks), dim=2)
        return self.model(self.state_adaptor(tokens), given.rate, time, language, images, given.language_mask, kept)

    def image_tokens(self, batch: Batch, valid: Tensor) -> Tensor:
        """[B, T * C * N, W]: time first, then cameras; pictures that are not ``valid`` bool [B, T, C] are grey."""
        return pictures.image_tokens(self.vision, self.cameras, batch, valid)

    def picture_tokens(self, shown: Sequence[Tensor | None]) -> Tensor:
        """[1, n * N, W] of pictures ``shown``, each uint8 [1, H, W, 3] of any size or None, which is grey."""
        return pictures.picture_tokens(self.vision, shown, next(self.parameters()).device)

    def sample_metrics(self, predicted: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The published measures in unified units; what is relative counts where the state has a place as well."""
        action, mask = batch["action"], batch["action_mask"]
        squared = metrics.squared_error(predicted, action)
        relative = metrics.relative_error(predicted, action, batch["state_norm"])
        both = mask * batch["state_mask"]
        return {
            "overall_avg_sample_mse": metrics.pooled(squared, mask),
            "overall_avg_sample_l2err": metrics.pooled(relative, both),
            "sample_mse": metrics.of_each(squared, mask),
            "sample_l2err": metrics.of_each(relative, both),
        }

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """``vision``: the image tower; ``adaptors``; ``core``: the transformer."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"vision": [], "adaptors": [], "core": []}
        for name, parameter in self.named_parameters():
            part = {"vision": "vision", "model": "core"}.get(name.partition(".")[0], "adaptors")
            groups[part].append((name, parameter))
        return groups

    def blocks(self) -> list[nn.Module]:
        """Layers of the tower, then of the core."""
        tower = self.vision.layers() if isinstance(self.vision, ImageTower) else []
        return [*tower, *self.model.blocks]

    def frozen_features(self) -> dict[str, FrozenFeatures]:
        """The tower, where any camera is seen."""
        if not pictures.keys_of(self.cameras):
            return {}
        return {"vision": pictures.frozen_tower(self._features, self.cameras, self.config.vision)}

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        return pictures.features(self.vision, self.cameras, batch)


def _start_adaptors(model: Rdt) -> None:
    for adaptor in (model.lang_adaptor, model.img_adaptor, model.state_adaptor):
        for layer in adaptor:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
