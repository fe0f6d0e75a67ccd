"""Low-rank adapters (Hu et al., 2021) by peft, beside the linear layers of a named part whose own weights are frozen.

Only a layer that is called can have one: a weight that is read by another module (the output projection inside torch's
attention) would lose its adapter in silence, so only plain ``nn.Linear`` layers and the ones that are faster without
gradients are taken.
"""

from __future__ import annotations

import difflib
import re

from torch import nn

from vla_ft.config import LoraConfig, RunConfig
from vla_ft.errors import UserError, unknown
from vla_ft.nn.linear import InferenceLinear
from vla_ft.policies.base import Model

_MARK = ".lora_"
_TAKEN = (nn.Linear, InferenceLinear)


def add_adapters(model: Model, config: RunConfig) -> None:
    """Freeze the parts named in ``lora`` and put adapters into their layers, in place. Raises UserError."""
    for part, settings in config.lora.items():
        groups = model.parameter_groups()
        if part not in groups:
            raise unknown("part of the model in lora", part, groups)
        if part in config.freeze:
            raise UserError(
                f"Part '{part}' is in freeze and in lora: its adapters would be frozen. Remove it from freeze; "
                "under adapters its own weights are frozen anyway."
            )
        names = _layers(model, part, settings)
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        _inject(model, names, settings)
        own = {id(p) for _, p in groups[part]}
        for name, parameter in model.named_parameters():
            plain = name.replace(".base_layer.", ".")
            if _MARK in name and any(name.startswith(f"{layer}.") for layer in names):
                parameter.requires_grad_(True)
            else:  # peft freezes everything but adapters: what trained before goes on
                parameter.requires_grad_(trained.get(name, trained.get(plain, False)) and id(parameter) not in own)
        _check_part(model, part, names)


def _layers(model: Model, part: str, settings: LoraConfig) -> list[str]:
    """Names of the part's linear layers that ``layers`` matches."""
    inside = {name.rpartition(".")[0] for name, _ in model.parameter_groups()[part]}
    # What a model itself freezes is not read: an adapter there would never get a gradient.
    linear = [
        name
        for name, module in model.named_modules()
        if type(module) in _TAKEN and name in inside and module.weight.requires_grad
    ]
    if not linear:
        raise UserError(
            f"Part '{part}' has no linear layers to adapt. Remove lora.{part}, or train or freeze the part."
        )
    try:
        found = [name for name in linear if re.fullmatch(settings.layers, name)]
    except re.error as error:
        raise UserError(
            f"lora.{part}.layers is {settings.layers!r}, which is no regular expression: {error}."
        ) from None
    if not found:
        near = difflib.get_close_matches(settings.layers, linear, n=4, cutoff=0.0)
        raise UserError(
            f"lora.{part}.layers is {settings.layers!r} and matches none of the {len(linear)} linear layers of "
            f"'{part}', such as {', '.join(near)}. It must match a name to its end, such as '.*linear[12]'."
        )
    return found


def _inject(model: Model, names: list[str], settings: LoraConfig) -> None:
    import peft  # takes seconds, as it brings transformers along

    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            target_modules="|".join(re.escape(name) for name in names),
            bias="none",
        ),
        model,
    )


def _check_part(model: Model, part: str, names: list[str]) -> None:
    members = {name for name, _ in model.parameter_groups()[part]}
    within = tuple(f"{name}." for name in names)
    made = [name for name, _ in model.named_parameters() if _MARK in name and name.startswith(within)]
    if len(made) != 2 * len(names) or not members.issuperset(made):
        raise RuntimeError(
            f"adapters of '{part}': {len(made)} tensors for {len(names)} layers, outside the part's names"
        )
