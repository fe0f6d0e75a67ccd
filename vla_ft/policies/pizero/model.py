"""π0: a vision-language model and a small expert that flows from noise to a chunk of actions while it reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_ft.policies.base import FEATURE_PREFIX, Batch, FrozenFeatures, Loss, Model
from vla_ft.policies.pizero.attention import visibility
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.flow import (
    ActionEncoder,
    draw_times,
    integrate,
    on_the_way,
    time_code,
    velocity,
)
from vla_ft.policies.pizero.gemma import KeysValues, LayerShape, Stack
from vla_ft.policies.pizero.vlm import FIRST_POSITION, PAD, PaliGemma, is_fixed

PROPRIO_TOKENS = 1
PREFIX = f"{FEATURE_PREFIX}prefix"
"""Batch key of the cached keys and values of a frozen vision-language model."""


@dataclass(frozen=True)
class Dimensions:
    """What a robot decides."""

    action: int
    proprio: int


class PiZero(Model):
    """π0 in open-pi-zero's form.

    Batch: ``image`` uint8 [B, S, S, 3] (or pixels [B, 3, S, S] in [-1, 1]), ``text`` int64 [B, N] padded on the right,
    ``proprio`` [B, P], and for the loss ``action`` [B, K, A]; numbers are normalised. ``feature_prefix`` [B, L, 2,
    kv_heads, S, head_dim], cached keys and values of the frozen vision-language model, may stand for the image.

    Three kinds of token see themselves and those before them: picture and prompt, proprioception, actions. So each is
    run by itself over the keys and values of the earlier ones, and one that is not trained runs without a graph.
    """

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__()
        self.config, self.dimensions = config, dimensions
        self.vlm = PaliGemma(config)
        self.experts = nn.ModuleDict({"action": _expert(config)})
        if not config.tie_experts:
            self.experts["proprio"] = _proprio_expert(config)
        self.proprio_encoder = nn.Linear(dimensions.proprio, config.expert_width)
        self.action_encoder = ActionEncoder(dimensions.action, config.expert_width, timed=config.adaptive is None)
        self.action_decoder = nn.Linear(config.expert_width, dimensions.action)

    # --- what the picture and the prompt say -----------------------------------------------------------------------

    def valid(self, text: Tensor) -> Tensor:
        """bool [B, S]: which tokens of picture and prompt are not padding."""
        return torch.cat((text.new_ones(len(text), self.config.image_tokens, dtype=torch.bool), text != PAD), dim=1)

    def prefix(self, batch: Batch) -> list[KeysValues]:
        """Keys and values of picture and prompt in every layer. A frozen model leaves no graph behind."""
        if PREFIX in batch:
            return [KeysValues(*layer.unbind(1)) for layer in batch[PREFIX].unbind(1)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.vlm.parameters())):
            return self.vlm(batch["image"], batch["text"], self.valid(batch["text"]))

    # --- the experts over it ---------------------------------------------------------------------------------------

    def code(self, time: Tensor) -> Tensor:
        """Code [B, D] of flow times [B]: joined to the actions, or what adaptive layers are conditioned on."""
        return time_code(time, self.config.condition_width or self.config.expert_width, self.config.time_period)

    def predict(self, batch: Batch, actions: Tensor, time: Tensor) -> Tensor:
        """Velocity [B, K, A] at noisy ``actions`` [B, K, A] and flow times [B]: the form that is trained."""
        text, prefix = batch["text"], self.prefix(batch)
        if not self.config.tie_experts:
            return self.act(text, [prefix, self.sense(batch, prefix, time)], actions, time)
        # One expert for both kinds of token: they go through it together.
        code = self.code(time)
        tokens = torch.cat((self._proprio_tokens(batch), self.action_encoder(actions, code)), dim=1)
        allowed = self._visible(text)[:, self.config.prefix_tokens :]
        hidden, _ = self.experts["action"](tokens, FIRST_POSITION, allowed, [prefix], self._condition(code))
        return self.action_decoder(hidden[:, PROPRIO_TOKENS:])

    def sense(self, batch: Batch, prefix: list[KeysValues], time: Tensor) -> list[KeysValues]:
        """Keys and values of proprioception in every layer, over those of the prefix."""
        expert = self.experts["action" if self.config.tie_experts else "proprio"]
        start = self.config.prefix_tokens
        allowed = self._visible(batch["text"])[:, start : start + PROPRIO_TOKENS, : start + PROPRIO_TOKENS]
        condition = self._condition(self.code(time))
        return expert(self._proprio_tokens(batch), FIRST_POSITION, allowed, [prefix], condition)[1]

    def act(self, text: Tensor, before: Sequence[list[KeysValues]], actions: Tensor, time: Tensor) -> Tensor:
        """Velocity [B, K, A], given keys and values of picture, prompt and proprioception."""
        code = self.code(time)
        allowed = self._visible(text)[:, -self.config.horizon :]
        first = FIRST_POSITION + PROPRIO_TOKENS
        tokens = self.action_encoder(actions, code)
        hidden, _ = self.experts["action"](tokens, first, allowed, before, self._condition(code))
        return self.action_decoder(hidden)

    def _proprio_tokens(self, batch: Batch) -> Tensor:
        return self.proprio_encoder(batch["proprio"].to(self.proprio_encoder.weight.dtype))[:, None]

    def _visible(self, text: Tensor) -> Tensor:
        return visibility(self.valid(text), PROPRIO_TOKENS, self.config.horizon)

    def _condition(self, code: Tensor) -> Tensor | None:
        return code.to(self.action_decoder.weight.dtype) if self.config.adaptive else None

    # --- the contract ----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Loss:
        """Flow-matching loss at a random time on the way from random noise to the actions."""
        return self.loss(batch)

    def loss(self, batch: Batch, noise: Tensor | None = None, time: Tensor | None = None) -> Loss:
        """``forward`` with noise [B, K, A] and times [B] given; None draws them from torch's default generator.

        The mean over all elements, padded steps included, as published.
        """
        config, action = self.config, batch["action"]
        noise = torch.randn_like(action) if noise is None else noise
        if time is None:
            time = draw_times(
                len(action),
                config.flow_sampling,
                alpha=config.flow_alpha,
                sigma=config.flow_sigma_min,
                device=action.device,
            )
        point = on_the_way(noise, action, time, config.flow_sigma_min)
        error = self.predict(batch, point, time).float() - velocity(noise, action, config.flow_sigma_min).float()
        return Loss(error.square().mean())

    def sample(self, batch: Batch) -> Tensor:
        """Normalised action chunk [B, K, A] from noise of torch's default generator."""
        shape = (len(batch["text"]), self.config.horizon, self.dimensions.action)
        return self.sample_from(batch, torch.randn(shape, device=batch["text"].device))

    def sample_from(self, batch: Batch, noise: Tensor) -> Tensor:
        """``sample`` from given noise, in the type of the weights. Picture, prompt and proprioception are run once.

        Adaptive experts read proprioception at time 0 throughout, as published, though they trained with it at the
        actions' own time.
        """
        noise = noise.to(self.action_decoder.weight.dtype)
        text, prefix = batch["text"], self.prefix(batch)
        before = [prefix, self.sense(batch, prefix, torch.zeros(len(noise), device=noise.device))]
        actions = integrate(noise, lambda point, time: self.act(text, before, point, time), self.config.inference_steps)
        clip = self.config.action_clip
        return actions if clip is None else actions.clamp(-clip, clip)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """``vlm``: what is published as the trained vision-language model; ``action``: experts, encoders, decoder;
        ``fixed``: token embedding and pieces of the last layer, which are never trained."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"vlm": [], "action": [], "fixed": []}
        for name, parameter in self.named_parameters():
            if not name.startswith("vlm."):
                groups["action"].append((name, parameter))
            else:
                alone = is_fixed(name.removeprefix("vlm."), self.config.layers)
                groups["fixed" if alone else "vlm"].append((name, parameter))
        return groups

    def blocks(self) -> list[nn.Module]:
        """Layers of SigLIP, of Gemma, and of the experts; of the experts alone where cached features stand for the
        vision-language model."""
        read = [self.vlm.vision, self.vlm.stack] if isinstance(self.vlm, PaliGemma) else []
        stacks = [*read, *self.experts.values()]
        return [layer for stack in stacks for layer in stack.get_submodule("layers").children()]

    def frozen_features(self) -> dict[str, FrozenFeatures]:
        """The vision-language model: keys and values of picture and prompt, 18 KiB a token in bfloat16."""
        config = self.config

        def compute(batch: Batch) -> dict[str, Tensor]:
            return {PREFIX: torch.stack([torch.stack(layer, dim=1) for layer in self.prefix(batch)], dim=1)}

        return {
            "vlm": FrozenFeatures(
                module="vlm",
                inputs=("image", "text"),
                replaces=("image",),
                outputs=(PREFIX,),
                scope="sample",
                compute=compute,
                settings={
                    "model": f"PaliGemma, rope {config.vlm_rope_theta:g}, soft cap {config.soft_cap:g}",
                    "images": f"{config.image_size}x{config.image_size}, scaled to [-1, 1]",
                    "prompt": f"{config.text_tokens} tokens, tokenizer {config.tokenizer}",
                },
            )
        }


def _expert(config: Config, read: bool = True) -> Stack:
    shape = LayerShape(
        width=config.expert_width,
        inner=config.expert_mlp,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        soft_cap=config.soft_cap,
        adaptive=config.adaptive,
        condition=config.condition_width,
    )
    return Stack(shape, config.layers, config.expert_rope_theta, normed=True, read=read)


def _proprio_expert(config: Config) -> Stack:
    """An expert of its own for proprioception; what follows its last keys and values has no gradient."""
    expert = _expert(config, read=False)
    last = f"layers.{config.layers - 1}."
    attention = tuple(f"{last}self_attn.{name}_proj." for name in "qkv")
    read = (f"{last}input_layernorm.", *attention)
    for name, parameter in expert.named_parameters():
        if (name.startswith(last) and not name.startswith(read)) or name.startswith("norm."):
            parameter.requires_grad_(False)
    return expert
