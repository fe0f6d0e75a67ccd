"""The policy as the guide calls it: ``pred, losses = policy(obs, actions)``, everything in the robot's own units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from policy.act.translator import GuideConfig, guide_config, model_settings
from vla_ft.config import check
from vla_ft.data.normalization import MeanStd
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError, nearest
from vla_ft.policies.act import build_model
from vla_ft.policies.act.config import Config
from vla_ft.policies.act.model import Act
from vla_ft.training.optimizers import freeze_parts

PAD = "is_pad"
"""Key of an observation's bool [B, K]: True for actions past the episode's end, which the losses leave out."""
SEEN = "is_observed"
"""Key of an observation's bool [B, T]: False for frames before the episode's begin, which nobody attends to."""
_DEFAULT_CAMERAS = ("left", "right")


def build_act_policy(config: Any) -> GuidePolicy:
    """The network of a configuration: ``configs/policy_act.yaml``, or the ``config.yaml`` of a run.

    Its weights are random and it has no statistics, so it does not predict: load an ``act-train-N.pth``, which has
    both. Training reads the encoder's published weights, this does not. Raises UserError for an unknown key.
    """
    return GuidePolicy(guide_config(config))


class Statistics(nn.Module):
    """Mean and scale of actions and states, as buffers: they travel with the weights."""

    def __init__(self, action_dim: int, state_dim: int) -> None:
        super().__init__()
        for name, width in {"action": action_dim, "state": state_dim}.items():
            self.register_buffer(f"{name}_mean", torch.full((width,), torch.nan))
            self.register_buffer(f"{name}_std", torch.full((width,), torch.nan))

    @property
    def known(self) -> bool:
        """Whether they were ever filled in."""
        return not any(buffer.isnan().any() for buffer in self.buffers())

    def normalize(self, name: str, values: Tensor, epsilon: float = 0.0) -> Tensor:
        """Robot units [..., D] to normalised float32."""
        return (values.float() - self.get_buffer(f"{name}_mean")) / (self.get_buffer(f"{name}_std") + epsilon)

    def unnormalize(self, name: str, values: Tensor) -> Tensor:
        """Normalised [..., D] to robot units, float32."""
        return values.float() * self.get_buffer(f"{name}_std") + self.get_buffer(f"{name}_mean")


class GuidePolicy(nn.Module):
    """ACT with its statistics inside, so that a state dict is all that a user needs.

    Observations: ``image_<camera>`` uint8 [B, T, H, W, 3] (T past frames, oldest first) and ``state`` float [B, T, S],
    which a robot without joint readings (``state_dim: 0``) leaves out; actions float [B, K, A]. States and actions are
    in robot units, going in and coming out. A frozen encoder has no gradient here either.
    """

    def __init__(self, config: GuideConfig) -> None:
        super().__init__()
        self.config = config
        settings: Config = check(Config, model_settings(config), "the ACT model")
        self.model: Act = build_model(settings, describe(config))
        if config.encoder.freeze:
            freeze_parts(self.model, ("backbone",))
        self.statistics = Statistics(config.action_dim, config.state_dim)
        self._ready = False

    def forward(self, obs: Mapping[str, Tensor], actions: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The predicted chunk [B, K, A] in robot units, and the losses in normalised units where actions are given.

        In training mode the CVAE sees the actions, as it must to learn. In eval mode it never does: the latent is zero
        whatever is given, so ``pred`` is what the robot would get, and ``kl_loss`` is 0 because no posterior is used.
        """
        self._check_ready()
        batch = self._batch(obs)
        if actions is None:
            return self.statistics.unnormalize("action", self.model.sample(batch)), {}
        batch |= self._targets(obs, actions)
        predicted, loss = self.model.chunk_and_loss(batch)
        error = loss.metrics[self.model.config.action_loss]
        losses = {
            "total_loss": loss.loss,
            "action_loss": error,
            "kl_loss": loss.metrics.get("kl", torch.zeros_like(error)),
        }
        return self.statistics.unnormalize("action", predicted), losses

    def _check_ready(self) -> None:
        if not self._ready and not self.statistics.known:
            raise UserError(
                "This policy has random weights and no statistics of actions. Load trained ones first: "
                "policy.load_state_dict(torch.load('runs/NAME/checkpoint/act-train-N.pth'))."
            )
        self._ready = True

    def _batch(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The guide's observation as the model's batch. Raises UserError for one that does not fit."""
        steps, config = self.config.temporal_context, self.model.config
        batch = {}
        for camera in self.model.dimensions.cameras:
            key = IMAGE_PREFIX + camera
            value = _take(obs, key)
            if value.dtype != torch.uint8 or value.dim() != 5 or value.shape[1] != steps or value.shape[-1] != 3:
                raise _invalid(key, value, f"uint8 (B, {steps}, H, W, 3)")
            batch[key] = value[:, 0] if steps == 1 else value
        if steps > 1 and SEEN in obs:
            batch["observation_pad_mask"] = obs[SEEN]
        if not self.config.state_dim:
            return batch
        state = _take(obs, "state")
        if state.dim() != 3 or tuple(state.shape[1:]) != (steps, self.config.state_dim):
            raise _invalid("state", state, f"float (B, {steps}, {self.config.state_dim})")
        state = self.statistics.normalize("state", state, config.std_epsilon)
        return batch | {"proprio": state[:, 0] if steps == 1 else state}

    def _targets(self, obs: Mapping[str, Tensor], actions: Tensor) -> dict[str, Tensor]:
        expected = (self.config.chunk_size, self.config.action_dim)
        if actions.dim() != 3 or tuple(actions.shape[1:]) != expected:
            raise UserError(
                f"The actions have shape {tuple(actions.shape)}, expected (B, {expected[0]}, {expected[1]})."
            )
        padded = obs.get(PAD)
        real = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device) if padded is None else ~padded
        action = self.statistics.normalize("action", actions, self.model.config.std_epsilon)
        return {"action": action, "action_pad_mask": real}


def describe(config: GuideConfig) -> DatasetDescription:
    """What the network needs of a dataset, from the configuration alone."""
    size = config.image_shape or (224, 224)
    return DatasetDescription(
        name="act_guide",
        cameras=dict.fromkeys(config.cameras or _DEFAULT_CAMERAS, size),
        action_names=tuple(f"action_{i}" for i in range(config.action_dim)),
        action_units=("unknown",) * config.action_dim,
        proprio_names=tuple(f"state_{i}" for i in range(config.state_dim)),
        proprio_units=("unknown",) * config.state_dim,
        action_kind="unknown",
        action_mode="unknown",
        gripper="",
        fps=0.0,
    )


def statistics_state(settings: Config, statistics: DatasetStatistics) -> dict[str, Tensor]:
    """The buffers of ``Statistics`` by their names in a ``GuidePolicy``, as training normalises."""
    state = {}
    for name, feature in {"action": "action", "state": "proprio"}.items():
        form = MeanStd.of(statistics[feature], floor=settings.std_floor, unbiased=settings.unbiased_std)
        state[f"statistics.{name}_mean"] = torch.from_numpy(form.mean.copy())
        state[f"statistics.{name}_std"] = torch.from_numpy(form.scale.copy())
    return state


def _take(obs: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in obs:
        raise UserError(
            f"Invalid observation format: no '{key}' among {', '.join(obs) or 'nothing'}.{nearest(key, obs)}"
        )
    return obs[key]


def _invalid(key: str, value: Tensor, expected: str) -> UserError:
    seen = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return UserError(f"Invalid observation format: '{key}' is {seen}, expected {expected}.")
