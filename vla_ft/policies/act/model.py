"""ACT: a chunk of actions from one look at the cameras and joints, as published and in LeRobot's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.nn.clip import ClipVision
from vla_ft.nn.detr import Decoder, Encoder, xavier_uniform_
from vla_ft.nn.resnet import ResNet
from vla_ft.policies.act.config import Config
from vla_ft.policies.act.pixels import Pixels
from vla_ft.policies.act.posterior import PosteriorEncoder, kl_divergence
from vla_ft.policies.act.vision import FusedCameras, Vision, VisionTokens
from vla_ft.policies.base import FEATURE_PREFIX, Batch, FrozenFeatures, Loss, Model


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """What a robot and its cameras decide. Zero leaves that input out; a model needs at least one."""

    cameras: tuple[str, ...]
    action: int
    proprio: int
    env_state: int = 0


class Act(Model):
    """DETR-VAE over tokens [latent, proprioception, environment state, images].

    Batch: ``image_<camera>`` uint8 [B, H, W, 3], ``proprio`` [B, P], and for the loss ``action`` [B, K, A] with
    ``action_pad_mask`` bool [B, K] (True where real); ``env_state`` [B, E] where the dimensions have one. Numbers are
    normalised. ``feature_image_<camera>`` [B, T, C, h, w] (with camera fusion [B, T, C]), the frozen trunk's cached
    output, may stand for the images. ``trunk`` replaces the configured one; it states its channels as ``out_channels``.

    With ``observation_steps`` T > 1 observations have a second dimension, [B, T, ...], oldest first. Each step brings
    tokens of its own through the same projections, and ``step_positions`` is added to the positions of all tokens of a
    step: a step is known by its place in the window, a token by its place in the step. ``observation_pad_mask`` bool
    [B, T] (True where real) says which steps exist: tokens of steps before the episode are keys for nobody, so what
    they hold (the first frame again) does not matter. The posterior sees the current step's joints alone. With T = 1
    there are no such positions and no mask: it is the published network.
    """

    def __init__(self, config: Config, dimensions: Dimensions, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.dimensions = dimensions
        shape, dim = config.layer_shape, config.hidden_dim
        self.vision = self._build_vision(trunk) if dimensions.cameras else None
        self.posterior = self._build_posterior() if config.use_vae else None
        self.project_latent = nn.Linear(config.latent_dim, dim)
        self.project_proprio = nn.Linear(dimensions.proprio, dim) if dimensions.proprio else None
        self.project_env_state = nn.Linear(dimensions.env_state, dim) if dimensions.env_state else None
        self.token_positions = nn.Embedding(1 + bool(dimensions.proprio) + bool(dimensions.env_state), dim)
        steps = config.observation_steps
        self.step_positions = nn.Embedding(steps, dim) if steps > 1 else None
        self.encoder = Encoder(shape, config.encoder_layers)
        self.decoder = Decoder(shape, config.decoder_layers)
        self.queries = nn.Embedding(config.chunk_size, dim)
        self.action_head = nn.Linear(dim, dimensions.action)
        # As published, no loss reads this head: frozen, it stays what it was, and DDP does not wait for its gradient.
        self.pad_head = nn.Linear(dim, 1).requires_grad_(False) if config.pad_head else None
        xavier_uniform_(self.encoder)
        xavier_uniform_(self.decoder)

    def _build_vision(self, trunk: nn.Module | None) -> Vision:
        config, pixels = self.config, Pixels.of(self.config)
        if trunk is None:
            clip = config.backbone == "clip_vit_b32"
            trunk = ClipVision() if clip else ResNet(config.backbone, config.dilation)  # type: ignore[arg-type]
        channels = int(trunk.out_channels)  # type: ignore[arg-type]
        if config.camera_fusion == "none":
            return VisionTokens(trunk, channels, config.hidden_dim, config.camera_layout, pixels)
        return FusedCameras(trunk, channels, config.hidden_dim, config.camera_fusion, pixels)

    def _build_posterior(self) -> PosteriorEncoder:
        config = self.config
        return PosteriorEncoder(
            config.layer_shape,
            config.vae_encoder_layers,
            chunk_size=config.chunk_size,
            action_dim=self.dimensions.action,
            proprio_dim=self.dimensions.proprio,
            latent_dim=config.latent_dim,
        )

    def observe(self, batch: Batch) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor]]:
        """Image tokens [B, T * N, D], their positions [1, T * N, D], and the numeric tokens, each [B, T, D]."""
        steps = self.config.observation_steps
        numeric = []
        for key, project in (("proprio", self.project_proprio), ("env_state", self.project_env_state)):
            if project is not None:
                tokens = project(batch[key])
                numeric.append(tokens if steps > 1 else tokens.unsqueeze(1))
        if self.vision is None:
            return None, None, numeric
        tokens, places = self.vision(self._trunk_features(batch))
        if self.step_positions is not None:
            tokens = tokens.unflatten(0, (-1, steps)).flatten(1, 2)
            places = (places.unsqueeze(1) + self.step_positions.weight[:, None]).flatten(1, 2)
        return tokens, places, numeric

    def _trunk_features(self, batch: Batch) -> list[Tensor]:
        """Trunk output [B * T, ...] of each camera, from the images or as it was cached."""
        assert self.vision is not None
        keys = [IMAGE_PREFIX + camera for camera in self.dimensions.cameras]
        if FEATURE_PREFIX + keys[0] not in batch:
            return self._run_trunk({key: batch[key] for key in keys})
        cached = [batch[FEATURE_PREFIX + key].flatten(0, 1) for key in keys]
        # Images come with channels last, and so do the trunk's maps: another layout would round differently.
        return [one.contiguous(memory_format=torch.channels_last) if one.dim() == 4 else one for one in cached]

    def _run_trunk(self, images: Batch) -> list[Tensor]:
        """Trunk output of each camera's images uint8 [B, H, W, 3] or [B, T, H, W, 3], or prepared [B, C, H, W]."""
        assert self.vision is not None
        frames = {key: image.flatten(0, 1) if image.dim() == 5 else image for key, image in images.items()}
        prepared = [self.vision.prepare(image, key.removeprefix(IMAGE_PREFIX)) for key, image in frames.items()]
        return self.vision.features(prepared)

    def encode(self, batch: Batch, latent: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The memory that actions are read from [B, L, D], its positions [1, L, D], and which of it nobody may attend
        to, bool [B, L] or None, given ``latent`` [B, Z]."""
        images, places, numeric = self.observe(batch)
        tokens = torch.cat([self.project_latent(latent).unsqueeze(1), *numeric], dim=1)
        positions = self._numeric_positions()
        if images is not None and places is not None:
            tokens = torch.cat((tokens, images), dim=1)
            positions = torch.cat((positions, places), dim=1)
        ignore = self._missing(batch, tokens.shape[1], len(numeric))
        return self.encoder(tokens, positions, ignore), positions, ignore

    def _numeric_positions(self) -> Tensor:
        """Positions of the latent and the numeric tokens, [1, 1 + kinds * T, D]."""
        kinds = self.token_positions.weight.unsqueeze(0)
        if self.step_positions is None:
            return kinds
        placed = kinds[:, 1:, None] + self.step_positions.weight
        return torch.cat((kinds[:, :1], placed.flatten(1, 2)), dim=1)

    def _missing(self, batch: Batch, length: int, kinds: int) -> Tensor | None:
        """Tokens of steps before the episode, bool [B, length]; None where there can be none."""
        if self.step_positions is None or "observation_pad_mask" not in batch:
            return None
        missing = ~batch["observation_pad_mask"]
        steps = missing.shape[1]
        each = (length - 1) // steps - kinds
        latent = missing.new_zeros(len(missing), 1)
        return torch.cat((latent, missing.repeat(1, kinds), missing.repeat_interleave(each, dim=1)), dim=1)

    def decode(self, memory: Tensor, positions: Tensor, ignore: Tensor | None = None) -> Tensor:
        """The decoder output [B, K, D] that the configuration reads, from what ``encode`` gives.

        With ``decoder_output: first`` the layers after the first are still computed in training, as published: out of
        the stack their gradient is zero, not absent, which AdamW's weight decay and DDP both see.
        """
        first = self.config.decoder_output == "first"
        queries = self.queries.weight.unsqueeze(0)
        target = torch.zeros_like(queries).expand(memory.shape[0], -1, -1)
        depth = 1 if first and not torch.is_grad_enabled() else None
        return self.decoder(target, queries, memory, positions, depth, ignore)[0 if first else -1]

    def predict(self, batch: Batch, latent: Tensor) -> Tensor:
        """Normalised action chunk [B, K, A] for a given ``latent`` [B, Z]."""
        return self.action_head(self.decode(*self.encode(batch, latent)))

    def forward(self, batch: Batch) -> Loss:
        """Action loss plus weighted KL. Metrics: ``l1`` (or ``l2``), and ``kl`` where a posterior was used."""
        return self.loss(batch)

    def loss(self, batch: Batch, noise: Tensor | None = None) -> Loss:
        """``forward`` with the latent noise [B, Z] given; None draws it from torch's default generator."""
        return self.chunk_and_loss(batch, noise)[1]

    def chunk_and_loss(self, batch: Batch, noise: Tensor | None = None) -> tuple[Tensor, Loss]:
        """The predicted chunk [B, K, A], normalised, and its ``loss``; in eval mode it is that of ``sample``, unless
        ``eval_latent`` is ``posterior``."""
        config = self.config
        action = batch["action"][:, : config.chunk_size]
        real = batch["action_pad_mask"][:, : config.chunk_size]
        metrics = {}
        if self.posterior is None or not (self.training or config.eval_latent == "posterior"):
            latent, penalty = self._zero_latent(action.shape[0]), None
        else:
            mean, log_variance = self.posterior(action, real, self._joints_now(batch))
            noise = torch.randn_like(mean) if noise is None else noise
            latent = mean + (log_variance / 2).exp() * noise
            penalty = self._kl(mean.float(), log_variance.float())
            metrics["kl"] = penalty.detach()
        predicted = self.predict(batch, latent)
        error = self._action_error(predicted, action, real)
        metrics[config.action_loss] = error.detach()
        loss = error if penalty is None else error + config.kl_weight * penalty
        # Over all steps, padding included, every sample counts alike.
        per_step: dict[str, float] = {} if config.loss_reduction == "all" else {config.action_loss: 1.0}
        return predicted, Loss(loss, metrics, per_step)

    def sample(self, batch: Batch) -> Tensor:
        """Normalised action chunk [B, K, A] with the latent at zero, the mean of the prior."""
        cameras = [IMAGE_PREFIX + camera for camera in self.dimensions.cameras]
        observed = ("proprio", "env_state", *cameras, *(FEATURE_PREFIX + camera for camera in cameras))
        size = next(batch[key].shape[0] for key in observed if key in batch)
        return self.predict(batch, self._zero_latent(size))

    def _joints_now(self, batch: Batch) -> Tensor | None:
        """Proprioception of the current step [B, P]."""
        if "proprio" not in batch or self.step_positions is None:
            return batch.get("proprio")
        return batch["proprio"][:, -1]

    def _zero_latent(self, batch_size: int) -> Tensor:
        return self.project_latent.weight.new_zeros(batch_size, self.config.latent_dim)

    def _kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        divergence = kl_divergence(mean, log_variance)
        summed = self.config.kl_reduction == "sum"
        return (divergence.sum(1) if summed else divergence.mean(1)).mean()

    def _action_error(self, predicted: Tensor, action: Tensor, real: Tensor) -> Tensor:
        difference = predicted.float() - action.float()
        error = difference.abs() if self.config.action_loss == "l1" else difference.square()
        error = error * real.unsqueeze(-1)
        if self.config.loss_reduction == "all":
            return error.mean()
        return error.sum() / (real.sum() * error.shape[-1]).clamp(min=1)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """``backbone``: the image trunk, which the published code gives its own learning rate; ``action``: the rest."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"backbone": [], "action": []}
        for name, parameter in self.named_parameters():
            groups["backbone" if name.startswith("vision.trunk.") else "action"].append((name, parameter))
        return groups

    def blocks(self) -> list[nn.Module]:
        """Blocks of the trunk, then the layers of posterior, encoder and decoder."""
        trunk = self.vision.trunk if self.vision is not None else None
        found: list[nn.Module] = trunk.blocks() if isinstance(trunk, ResNet | ClipVision) else []
        if self.posterior is not None:
            found += list(self.posterior.encoder.layers)
        return [*found, *self.encoder.layers, *self.decoder.layers]

    def frozen_features(self) -> dict[str, FrozenFeatures]:
        """The image trunk: its output, [C, h, w] or pooled [C], depends on one camera's image alone."""
        if self.vision is None:
            return {}
        images = tuple(IMAGE_PREFIX + camera for camera in self.dimensions.cameras)
        outputs = tuple(FEATURE_PREFIX + key for key in images)

        def compute(batch: Batch) -> Batch:
            now = {key: batch[key][:, -1] if batch[key].dim() == 5 else batch[key] for key in images}
            return dict(zip(outputs, self._run_trunk(now), strict=True))

        return {
            "backbone": FrozenFeatures(
                module="vision.trunk",
                inputs=images,
                replaces=images,
                outputs=outputs,
                scope="frame",
                compute=compute,
                settings={
                    "trunk": f"{type(self.vision.trunk).__name__} {self.config.backbone}"
                    + (", dilated" if self.config.dilation else "")
                    + (", pooled" if self.vision.pooled else ""),
                    **self.vision.pixels.words,
                },
            )
        }
