"""What happens to a freshly built model before an engine takes it: freezing, adapters, types, blocks."""

from __future__ import annotations

import torch

from vla_ft.config import RunConfig
from vla_ft.policies.base import Model
from vla_ft.training.optimizers import freeze_parts


def prepare_model(model: Model, config: RunConfig) -> None:
    """Freeze, add adapters and set the types that ``config`` asks for, in place. Works on the meta device too.

    Raises UserError for parts or layers that the model does not have.
    """
    freeze_parts(model, config.freeze)
    set_types(model, config)


def set_types(model: Model, config: RunConfig) -> None:
    """Hold trained weights in bfloat16 where the precision says so, frozen ones by ``frozen_dtype``; never buffers."""
    trained = torch.bfloat16 if config.precision in ("bf16_stochastic", "bf16_kahan") else torch.float32
    frozen = torch.bfloat16 if config.frozen_dtype == "bf16" else torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(trained if parameter.requires_grad else frozen)
