"""What CogACT's tensors are called: our own names, the published file's, and OpenVLA's of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vla_ft.errors import UserError
from vla_ft.policies.cogact.config import HEADS, Config

PUBLISHED: tuple[tuple[str, str], ...] = (
    # ours                published: sub-dictionary and name
    ("vlm.vision.", "vision_backbone."),
    ("vlm.projector.", "projector."),
    ("vlm.llm.", "llm_backbone.llm."),
    ("head.", "action_model.net."),
)
"""Beginnings of names. A published ``.pt`` is ``{"model": {sub-dictionary: {name: tensor}}}``."""
HUGGING_FACE = (
    ("vlm.vision.dino_featurizer.", "vision_backbone.featurizer."),
    ("vlm.vision.siglip_featurizer.", "vision_backbone.fused_featurizer."),
    ("vlm.projector.projector.0.", "projector.fc1."),
    ("vlm.projector.projector.2.", "projector.fc2."),
    ("vlm.projector.projector.4.", "projector.fc3."),
    ("vlm.llm.", "language_model."),
)
"""The same for OpenVLA as converted for transformers (``openvla/openvla-7b``), which has no head either."""
LAYOUTS = ("vla_ft", "cogact", "prismatic", "openvla")
HEADLESS = ("prismatic", "openvla")
"""Layouts of vision-language models, whose head starts fresh."""
PARTS = {"vision": "vlm.vision.", "projector": "vlm.projector.", "llm": "vlm.llm.", "head": "head."}
"""Parts of the model, as ``freeze`` calls them, and the beginnings of their tensors' names."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by the model's names."""
_OWN_HEAD = "head.positional_embedding"
_AVERAGE = "ema_diffusion."
_NOWHERE = "(no such part) "


def published_name(name: str) -> str:
    """A tensor of the model as published files call it, sub-dictionary first."""
    for ours, theirs in PUBLISHED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"'{name}' is no tensor of CogACT")


def own_name(key: str, beginnings: tuple[tuple[str, str], ...] = PUBLISHED) -> str | None:
    """The model's name of a published tensor. The average that runs with ``use_ema`` add is knowingly unused."""
    if key.startswith(_AVERAGE):
        return None
    for ours, theirs in beginnings:
        if key.startswith(theirs):
            # Hugging Face's OpenVLA calls DINOv2's scales otherwise.
            return ours + key.removeprefix(theirs).replace(".scale_factor", ".gamma")
    return _NOWHERE + key


def own_names(keys: Iterable[str], layout: str) -> dict[str, str | None]:
    """The model's names of a file's tensors, as ``own_name`` gives them."""
    if layout == "vla_ft":
        return {key: key for key in keys}
    return {key: own_name(key, HUGGING_FACE if layout == "openvla" else PUBLISHED) for key in keys}


def part_of(name: str) -> str | None:
    """The part that a tensor of the model belongs to; None for a name that no part has."""
    return next((part for part, beginning in PARTS.items() if name.startswith(beginning)), None)


def detect_layout(state: Iterable[str], source: str) -> str:
    """Which layout a file's names show, some parts or all. Raises UserError for no CogACT, OpenVLA or Prismatic."""
    names = set(state)
    if "projector.fc1.weight" in names and "language_model.lm_head.weight" in names:
        return "openvla"
    # A classifier's `head.weight` is no part of ours: a head alone shows itself by its table.
    if _OWN_HEAD in names or any(part_of(name) not in (None, "head") for name in names):
        return "vla_ft"
    held = {part_of(own_name(name) or "") for name in names} - {None}
    if held:
        return "cogact" if "head" in held else "prismatic"
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    raise UserError(f"{source} holds {shown}...: no CogACT, OpenVLA or Prismatic checkpoint.")


def head_shape(shapes: Shapes) -> tuple[int, int, int, int]:
    """(width, depth, actions in a chunk, action dimensions) of a head, from its tensors' shapes. Raises UserError."""
    places, inputs = shapes.get("head.positional_embedding", ()), shapes.get("head.x_embedder.linear.weight", ())
    if len(places) != 2 or len(inputs) != 2:
        raise UserError("The head's tables of positions and actions are missing or no matrices. Fetch the file again.")
    numbers = [int(m[1]) for name in shapes if (m := re.match(r"head\.blocks\.(\d+)\.", name))]
    return places[1], 1 + max(numbers, default=-1), places[0] - 1, inputs[1]


def head_name(shapes: Shapes) -> str:
    """The size of a head by its shapes. Raises UserError for one that was never published."""
    width, depth, _, _ = head_shape(shapes)
    for name, shape in HEADS.items():
        if (shape.width, shape.depth) == (width, depth):
            return name
    raise UserError(f"The head has width {width} and {depth} blocks: none of {', '.join(HEADS)}.")


def refuse_other_head(config: Config, action_dim: int, shapes: Shapes, source: str) -> None:
    """Raises UserError, with the settings that fit, where a file's head is not the configuration's."""
    width, depth, horizon, actions = head_shape(shapes)
    own = (config.dit.width, config.dit.depth, config.horizon, action_dim)
    if own == (width, depth, horizon, actions):
        return
    if own[:2] != (width, depth):
        name = head_name(shapes)
        raise UserError(
            f"{source} holds the head {name}, the configuration {config.action_model_type}. "
            f"Set model.action_model_type={name}."
        )
    if own[2] != horizon:
        raise UserError(
            f"{source} predicts {horizon} actions, the configuration {config.horizon}. "
            f"Set model.future_action_window_size={horizon - 1}."
        )
    raise UserError(
        f"{source} moves {actions} dimensions, the dataset {action_dim}. Bring the dataset's actions into that form "
        "(data.standardize), or start from a checkpoint without a head, such as openvla-7b-prismatic."
    )
