"""Building an ACT model from a golden case's JSON, and reading its gradients under the published names."""

from __future__ import annotations

from typing import Any

import torch
from golden_files import Golden
from torch import Tensor, nn

from vla_ft.policies.act.checkpoint import load_state, rename_for
from vla_ft.policies.act.config import Config
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.policies.base import Batch


class GivenFeatures(nn.Module):
    """A trunk for cases that start from feature maps: passes them on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, features: Tensor) -> Tensor:
        return features


def original_model(golden: Golden, **changes: Any) -> Act:
    """The original's network of a case, with its weights. Eval mode, as the reference ran it (no dropout)."""
    facts, sizes = golden.facts, golden.facts["config"]
    config = Config.original(
        chunk_size=sizes["num_queries"],
        hidden_dim=sizes["hidden_dim"],
        heads=sizes["nheads"],
        feedforward_dim=sizes["dim_feedforward"],
        encoder_layers=sizes["enc_layers"],
        vae_encoder_layers=sizes["enc_layers"],
        latent_dim=golden["in.eps"].shape[-1],
        kl_weight=sizes["kl_weight"],
        pre_norm=sizes["pre_norm"],
        backbone=sizes.get("backbone", "resnet18"),
        dilation=sizes.get("dilation", False),
        **{"decoder_layers": sizes["dec_layers"], **changes},
    )
    trunk = GivenFeatures(facts["feature_channels"]) if "feature_channels" in facts else None
    dimensions = Dimensions(
        cameras=tuple(sizes["camera_names"]),
        action=golden["in.actions"].shape[-1],
        proprio=golden["in.qpos"].shape[-1],
    )
    model = Act(config, dimensions, trunk)
    load_state(model, golden.weights(), "original", golden.name)
    return model.eval()


def lerobot_model(golden: Golden, **changes: Any) -> Act:
    """LeRobot's network of a case, with its weights, in train mode with dropout 0 as the reference ran it."""
    sizes = golden.facts["config"]
    config = Config.lerobot(
        chunk_size=sizes["chunk"],
        hidden_dim=sizes["dim"],
        heads=sizes["heads"],
        feedforward_dim=sizes["ff"],
        encoder_layers=sizes["enc"],
        decoder_layers=sizes["dec"],
        vae_encoder_layers=sizes["vae"],
        latent_dim=sizes["latent"],
        kl_weight=sizes["kl"],
        pre_norm=sizes["pre_norm"],
        activation=sizes.get("act", "relu"),
        use_vae=sizes["use_vae"],
        dropout=0.0,
        **changes,
    )
    dimensions = Dimensions(
        cameras=tuple(sizes.get("cams", ())),
        action=sizes["action_dim"],
        proprio=sizes.get("state_dim", 0),
        env_state=sizes.get("env_dim", 0),
    )
    model = Act(config, dimensions)
    load_state(model, golden.weights(), "lerobot", golden.name)
    return model.train()


def lerobot_batch(golden: Golden, prefix: str, rows: slice = slice(None)) -> Batch:
    """LeRobot's observation tensors ``<prefix>observation.*`` under our names."""
    batch = {}
    for key, value in golden.tensors.items():
        if key.startswith(prefix + "observation."):
            name = key.removeprefix(prefix + "observation.")
            ours = {"state": "proprio", "environment_state": "env_state"}.get(name)
            batch[ours or f"image_{name.removeprefix('images.')}"] = value[rows]
    return batch


def assert_gradient_norms(model: Act, golden: Golden, layout: str) -> None:
    """Every gradient norm that the case states, and no trained parameter without one."""
    ours = dict(model.named_parameters())
    rename = rename_for(model, layout)
    checked = set()
    for key, norm in golden.facts["grad_norms"].items():
        name = rename(key)
        assert name in ours, f"{key} has no counterpart"
        gradient = ours[name].grad
        assert (gradient is None) == (norm is None), f"{name}: the reference has {norm}, ours {gradient is not None}"
        if gradient is not None:
            golden.close(gradient.norm(), torch.tensor(norm), rtol=1e-4, atol=2e-5)
        checked.add(name)
    missing = {n for n, p in ours.items() if p.requires_grad} - checked
    assert not missing, f"no reference gradient for {sorted(missing)[:5]}"
