"""What happens to a freshly built model before an engine takes it: freezing, adapters, types, blocks."""

from __future__ import annotations

import torch

from vla_ft.config import RunConfig
from vla_ft.policies.base import Model
from vla_ft.policies.compiling import compile_blocks
from vla_ft.training.adapters import add_adapters
from vla_ft.training.blocks import recompute_activations
from vla_ft.training.optimizers import freeze_parts


def prepare_model(model: Model, config: RunConfig) -> None:
    """Add adapters, freeze and set types as ``config`` asks, in place. Works on the meta device too.

    Raises UserError for parts or layers that the model does not have.
    """
    add_adapters(model, config)
    freeze_parts(model, config.freeze)
    set_types(model, config)


def prepare_blocks(model: Model, config: RunConfig, device: torch.device) -> None:
    """Compute activations again and compile as ``config`` asks; ``device`` is where the model is going to run.

    Raises UserError where nothing can be compiled.
    """
    if config.activation_checkpointing:
        recompute_activations(model)
    if config.compile:
        compile_blocks(model, device)


def set_types(model: Model, config: RunConfig) -> None:
    """Hold trained weights in bfloat16 where the precision says so, frozen ones by ``frozen_dtype``; never buffers."""
    trained = torch.bfloat16 if config.precision in ("bf16_stochastic", "bf16_kahan") else torch.float32
    frozen = torch.bfloat16 if config.frozen_dtype == "bf16" else torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(trained if parameter.requires_grad else frozen)
