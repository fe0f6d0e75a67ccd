"""What a prediction is conditioned on, and what training hides of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_ft.policies.base import Batch
from vla_ft.policies.rdt.config import ConditionConfig


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """``state`` and ``mask`` float [B, 1, 128], ``rate`` int [B] (Hz, 0 unknown), ``language`` [B, L, W] with
    ``language_mask`` bool [B, L], ``valid`` bool [B, T, C]: which pictures are shown.

    ``mask``: places that the state fills; ``action_mask``: those of the action (in pre-training the same)."""

    state: Tensor
    mask: Tensor
    action_mask: Tensor
    rate: Tensor
    language: Tensor
    language_mask: Tensor
    valid: Tensor


def of_batch(batch: Batch) -> Conditions:
    """The conditions as they were recorded."""
    return Conditions(
        state=batch["state"],
        mask=batch["state_mask"][:, None],
        action_mask=batch["action_mask"][:, None],
        rate=batch["ctrl_freq"],
        language=batch["lang_tokens"],
        language_mask=batch["lang_mask"],
        valid=batch["image_valid"],
    )


def rows_of(given: Conditions, rows: slice) -> Conditions:
    """The conditions of some samples of a batch."""
    return Conditions(**{one.name: getattr(given, one.name)[rows] for one in dataclasses.fields(given)})


def hidden(given: Conditions, batch: Batch, config: ConditionConfig) -> Conditions:
    """The conditions with noise on the state and each part dropped at random, in the published order of draws.

    A dropped rate is 0, a dropped state the mean of its dataset, a dropped mask all zeros, a dropped picture grey, a
    dropped instruction the empty one. Random numbers come from torch's default generator.
    """
    size, device = len(given.rate), given.state.device

    def drawn(chance: float, *shape: int) -> Tensor:
        return torch.rand(shape, device=device) < chance

    rate = torch.where(drawn(config.drop, size), 0, given.rate)
    state = given.state
    if config.state_noise_snr is not None:
        share = 10 ** (-config.state_noise_snr / 20)
        state = state + torch.randn_like(state) * (batch["state_std"][:, None] * share)
    state = torch.where(drawn(config.drop, size, 1, 1), batch["state_mean"][:, None], state)
    unmasked = drawn(config.drop, size, 1, 1)
    mask, action_mask = (torch.where(unmasked, 0.0, one) for one in (given.mask, given.action_mask))
    external = config.drop if config.drop_external is None else config.drop_external
    steps, cameras = given.valid.shape[1:]
    chances = torch.tensor([external, *[config.drop] * (cameras - 1)], device=device)
    valid = given.valid & (torch.rand((size, steps, cameras), device=device) >= chances)
    language, language_mask = without_language(given, batch["lang_empty"], drawn(config.drop, size))
    return dataclasses.replace(
        given,
        rate=rate,
        state=state,
        mask=mask,
        action_mask=action_mask,
        valid=valid,
        language=language,
        language_mask=language_mask,
    )


def without_language(given: Conditions, empty: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Language and its mask with the empty instruction ``empty`` [B, n, W] where ``dropped`` bool [B]."""
    count = empty.shape[1]
    tokens = torch.zeros_like(given.language)
    tokens[:, :count] = empty
    mask = torch.arange(tokens.shape[1], device=tokens.device) < count
    return (
        torch.where(dropped[:, None, None], tokens, given.language),
        torch.where(dropped[:, None], mask[None], given.language_mask),
    )
