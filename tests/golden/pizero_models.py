"""Building a π0 model from a golden case's JSON, with the reference's weights and inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_files
import pytest
import torch
from golden_files import Golden
from torch import Tensor

from vla_ft.policies.base import Batch
from vla_ft.policies.pizero.checkpoint import load_state
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.layouts import plain
from vla_ft.policies.pizero.model import Dimensions, PiZero

PROPRIO, ACTION = "joint_model.mixtures.proprio.", "joint_model.mixtures.action."


def config_of(sizes: dict[str, Any], **changes: Any) -> Config:
    """Our configuration of the reference's short names (``key_doc`` in ``flow_base.json``)."""
    values = {
        "horizon": sizes["hor"],
        "image_size": sizes["img"],
        "patch_size": sizes["patch"],
        "text_tokens": sizes["max_seq"] - (sizes["img"] // sizes["patch"]) ** 2,
        "vision_width": sizes["sh"],
        "vision_mlp": sizes["si"],
        "vision_layers": sizes["sl"],
        "vision_heads": sizes["snh"],
        "vlm_width": sizes["vh"],
        "vlm_mlp": sizes["vi"],
        "expert_width": sizes["ah"],
        "expert_mlp": sizes["ai"],
        "layers": sizes["L"],
        "heads": sizes["nh"],
        "kv_heads": sizes["nkv"],
        "head_dim": sizes["hd"],
        "vocab_size": sizes["vocab"],
        "image_token": sizes["img_tok"],
        "vlm_rope_theta": sizes["vlm_theta"],
        "expert_rope_theta": sizes["act_theta"],
        "time_period": sizes["tmax"],
        "time_width": sizes["th"],
        "adaptive": sizes.get("adaptive"),
        "inference_steps": sizes["nstep"],
        "action_clip": sizes["clip"],
        "flow_sigma_min": sizes["sig_min"],
    }
    return Config(**{**values, **changes})


def build(sizes: dict[str, Any], **changes: Any) -> PiZero:
    """A model of these sizes with fresh weights."""
    return PiZero(config_of(sizes, **changes), Dimensions(action=sizes["adim"], proprio=sizes["pdim"]))


def reference_weights(golden: Golden) -> dict[str, Tensor]:
    """The case's state dict under the published names."""
    return {k.removeprefix("weights."): v for k, v in golden.tensors.items() if k.startswith("weights.")}


def inputs(golden: Golden) -> Batch:
    """The case's observation and actions under our names."""
    sizes = golden.facts["config"]
    pictures = (sizes["img"] // sizes["patch"]) ** 2
    ids = golden["in.input_ids"]
    assert (ids[:, :pictures] == sizes["img_tok"]).all(), "the picture's placeholders come first"
    batch = {
        "image": golden["in.pixel_values"],
        "text": ids[:, pictures:],
        "proprio": golden["in.proprios"][:, 0],
    }
    return batch | ({"action": golden["in.actions"]} if "in.actions" in golden else {})


def base(golden_root: Path) -> Golden:
    """``flow_base``, whose inputs and weights most cases share."""
    if not (golden_root / "pizero/flow_base.safetensors").is_file():
        pytest.skip("pizero/flow_base is not under this root")
    return golden_files.load(golden_root, "pizero/flow_base")


def model_of(golden: Golden, shared: Golden) -> PiZero:
    """The model of a case; weights that it does not list are those of ``flow_base``."""
    tied = golden.facts.get("tied_proprio_action", True)
    model = build(golden.facts["config"], tie_experts=tied)
    own = reference_weights(golden)
    vlm = {k: v for k, v in reference_weights(shared).items() if k.startswith(VLM)}
    state = (vlm | own) if own else reference_weights(shared)
    load_state(model, state, "open-pi-zero", golden.name)
    return model


VLM = ("embed_tokens.", "vision_tower.", "multi_modal_projector.", "joint_model.mixtures.vlm.")


def our_name(key: str, model: PiZero) -> str:
    """Our name of a published tensor; a tied expert has one for both."""
    from vla_ft.policies.pizero.layouts import rename_for

    tied = model.config.tie_experts
    name = rename_for("open-pi-zero", tied)(plain(key).replace(PROPRIO, ACTION) if tied else key)
    assert name is not None
    return name


def read_json(golden_root: Path, name: str) -> dict[str, Any]:
    """A JSON file of the folder, or a skip where it is not there."""
    path = golden_root / "pizero" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"pizero/{name} is not under this root")
    return dict(json.loads(path.read_text()))


def at(model: PiZero, shared: Golden) -> tuple[Tensor, Tensor]:
    """Noisy actions and times of ``flow_base``."""
    from vla_ft.policies.pizero.flow import on_the_way

    time = shared["in.t"]
    return on_the_way(shared["in.x0"], shared["in.actions"], time, model.config.flow_sigma_min), time


def assert_gradients(model: PiZero, golden: Golden) -> None:
    """Every gradient norm that the case states, and the gradients that it holds."""
    ours = dict(model.named_parameters())
    checked = set()
    for key, norm in golden.facts["grad_norms"].items():
        name = our_name(key, model)
        gradient = ours[name].grad
        assert (gradient is None) == (norm is None), f"{name}: the reference has {norm}"
        if gradient is not None:
            assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4, abs=2e-5), name
        checked.add(name)
    for key in golden.tensors:
        if key.startswith("grad."):
            gradient = ours[our_name(key.removeprefix("grad."), model)].grad
            torch.testing.assert_close(gradient, golden[key], rtol=1e-4, atol=2e-5)
    return None
