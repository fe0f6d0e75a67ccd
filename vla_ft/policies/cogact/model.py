"""CogACT: one image and one instruction to a chunk of actions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ft.policies.base import FEATURE_PREFIX, Batch, FrozenFeatures, Loss, Model
from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.diffusion import Schedule, add_noise, check_scale, guided, sample_ddim, sample_ddpm
from vla_ft.policies.cogact.dit import Dit
from vla_ft.policies.cogact.vlm import Vlm

COGNITION = FEATURE_PREFIX + "cognition"
"""Batch key of the vision-language model's answer, float [B, 1, llm width], where it was cached."""


class CogAct(Model):
    """DINOv2 and SigLIP patches, a projector, Llama 2, and a diffusion transformer over actions.

    Batch: ``image`` uint8 [B, S, S, 3], ``tokens`` int64 [B, L] and ``token_mask`` bool [B, L] of the prompt with BOS
    and EOS, padded on the right; for the loss ``action`` [B, T, A], normalised, with ``action_pad_mask`` bool [B, T].
    ``feature_cognition`` may stand for image and tokens.
    """

    def __init__(self, config: Config, action_dim: int) -> None:
        super().__init__()
        self.config, self.action_dim = config, action_dim
        self.vlm = Vlm(config)
        self.head = Dit(
            config.dit,
            horizon=config.horizon,
            action_dim=action_dim,
            condition_dim=config.llama.width,
            drop=config.condition_dropout,
        )
        self.schedule = Schedule.cosine()

    def cognition(self, batch: Batch) -> Tensor:
        """What the vision-language model makes of image and instruction, [B, 1, llm width], in the head's dtype."""
        if COGNITION in batch:
            return batch[COGNITION].to(self.head.positional_embedding.dtype)
        feature = self.vlm(batch["image"], batch["tokens"], batch["token_mask"])
        return feature.to(self.head.positional_embedding.dtype)

    def forward(self, batch: Batch) -> Loss:
        """Mean squared error of the predicted noise over the repeated samples. Metrics: ``mse``."""
        return self.loss(batch)

    def loss(
        self, batch: Batch, *, noise: Tensor | None = None, step: Tensor | None = None, drop: Tensor | None = None
    ) -> Loss:
        """``forward`` with noise [R B, T, A], diffusion steps int64 [R B] and dropped conditions bool [R B] given.

        Copy r of sample b is row ``r B + b``; each has its own noise, step and condition dropout.
        """
        repeats = self.config.repeated_diffusion_steps
        feature = self.cognition(batch).repeat(repeats, 1, 1)
        clean = batch["action"].repeat(repeats, 1, 1)
        noise = torch.randn_like(clean) if noise is None else noise
        if step is None:
            step = torch.randint(len(self.schedule.steps), (len(clean),), device=clean.device)
        predicted = self.head(add_noise(self.schedule, clean, noise, step), step, feature, drop).float()
        error = F.mse_loss(predicted, noise.float(), reduction="none")
        if self.config.loss_mask:
            real = batch["action_pad_mask"].repeat(repeats, 1).unsqueeze(2).expand_as(error)
            loss = (error * real).sum() / real.sum().clamp(min=1)
        else:
            loss = error.mean()
        return Loss(loss, {"mse": loss.detach()})

    def sample(self, batch: Batch) -> Tensor:
        """Normalised action chunk float32 [B, T, A], by the configuration's sampler and guidance."""
        feature = self.cognition(batch)
        noise = torch.randn(len(feature), self.config.horizon, self.action_dim, device=feature.device)
        return self.denoise(feature, noise)

    def denoise(
        self,
        feature: Tensor,
        noise: Tensor,
        *,
        cfg_scale: float | None = None,
        use_ddim: bool | None = None,
        num_ddim_steps: int | None = None,
    ) -> Tensor:
        """Actions [B, T, A] from a cognition feature [B, 1, Z] and initial noise [B, T, A], in float32 as published.

        What is None is the configuration's. Raises UserError for a number of DDIM steps or a guidance that cannot be.
        """
        config = self.config
        scale = check_scale(config.cfg_scale if cfg_scale is None else cfg_scale)
        ddim = config.use_ddim if use_ddim is None else use_ddim
        conditions = torch.cat((feature, self.head.z_embedder.uncondition.expand_as(feature)))

        def predict(x: Tensor, step: Tensor) -> Tensor:
            if scale <= 1:
                return self.head(x, step, feature).float()
            both = self.head(torch.cat((x, x)), torch.cat((step, step)), conditions)
            conditional, unconditional = both.float().chunk(2)
            return guided(conditional, unconditional, scale)

        if ddim:
            count = config.num_ddim_steps if num_ddim_steps is None else num_ddim_steps
            return sample_ddim(predict, noise, self.schedule.respaced(count))
        return sample_ddpm(predict, noise, self.schedule)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """``vision``, ``projector``, ``llm`` and ``head``; the first three are empty where cached features stand for
        the vision-language model."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"vision": [], "projector": [], "llm": [], "head": []}
        for name, parameter in self.named_parameters():
            first, second, *_ = name.split(".")
            groups[first if first == "head" else second].append((name, parameter))
        return groups

    def blocks(self) -> list[nn.Module]:
        """Blocks of both towers that are run, Llama's layers, the head's blocks; the head's alone where cached features
        stand for the rest."""
        read = [*self.vlm.vision.blocks(), *self.vlm.llm.model.layers] if isinstance(self.vlm, Vlm) else []
        return [*read, *self.head.blocks]

    def frozen_features(self) -> dict[str, FrozenFeatures]:
        """``vlm``: the vision-language model, when its three parts are frozen: 4,096 numbers a sample."""
        inputs = ("image", "tokens", "token_mask")
        config = self.config
        return {
            "vlm": FrozenFeatures(
                module="vlm",
                inputs=inputs,
                replaces=inputs,
                outputs=(COGNITION,),
                scope="sample",
                compute=lambda batch: {COGNITION: self.vlm(*(batch[key] for key in inputs))},
                settings={
                    "model": config.size,
                    "images": f"{config.image_size}x{config.image_size}, one camera",
                    "normalisation": "ImageNet for DINOv2, 0.5 for SigLIP",
                    "prompt": "Prismatic pure, instruction in lower case",
                },
            )
        }
