"""The names of π0's tensors in published files, and what these files cannot show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from vla_ft.errors import UserError
from vla_ft.policies.pizero.config import Config

LAYOUTS = ("vla_ft", "open-pi-zero", "paligemma")
Foreign = Literal["open-pi-zero", "paligemma"]

RENAMES: tuple[tuple[str, str, str | None], ...] = (
    # ours                            open-pi-zero                                             PaliGemma (see below)
    ("vlm.embed_tokens.", "embed_tokens.", "language_model.embed_tokens."),
    (
        "vlm.vision.patch_embedding.",
        "vision_tower.vision_model.embeddings.patch_embedding.",
        "vision_tower.embeddings.patch_embedding.",
    ),
    (
        "vlm.vision.position_embedding.",
        "vision_tower.vision_model.embeddings.position_embedding.",
        "vision_tower.embeddings.position_embedding.",
    ),
    ("vlm.vision.layers.", "vision_tower.vision_model.encoder.layers.", "vision_tower.encoder.layers."),
    ("vlm.vision.post_layernorm.", "vision_tower.vision_model.post_layernorm.", "vision_tower.post_layernorm."),
    ("vlm.projector.", "multi_modal_projector.linear.", "multi_modal_projector.linear."),
    ("vlm.stack.layers.", "joint_model.mixtures.vlm.layers.", "language_model.layers."),
    ("experts.action.", "joint_model.mixtures.action.", None),
    ("experts.proprio.", "joint_model.mixtures.proprio.", None),
    ("proprio_encoder.", "proprio_encoder.", None),
    ("action_encoder.", "action_encoder.", None),
    ("action_decoder.", "action_decoder.", None),
)
"""Beginnings of names: one part of the network under its three names."""

_PALIGEMMA_GENERATIONS = (
    ("language_model.model.", "language_model."),  # as published, transformers before 4.52
    ("vision_tower.vision_model.", "vision_tower."),  # before 5
    ("model.", ""),  # from 4.52 on
)
"""Beginnings that came and went between generations of transformers, and what the table calls them."""
_PALIGEMMA_UNUSED = ("language_model.norm.", "lm_head.", "language_model.lm_head.", "vision_tower.head.")
_COMPILED = "_orig_mod."
"""What torch.compile put before names in checkpoints of compiled models."""
_PUBLISHED = re.compile(r"(bridge|fractal)_(beta|uniform)_step\d+_.*\.pt")
_OPENPI = ("paligemma_with_expert.", "action_in_proj.", "action_out_proj.", "action_time_mlp_in.", "time_mlp_in.")
_NOWHERE = "(no such part) "


def constants(config: Config) -> dict[str, float]:
    """What decides the numbers and leaves no trace in weights: it travels with exported ones."""
    return {
        "vlm_rope_theta": config.vlm_rope_theta,
        "expert_rope_theta": config.expert_rope_theta,
        "time_period": config.time_period,
        "soft_cap": config.soft_cap,
    }


def published_constants(file_name: str) -> dict[str, float] | None:
    """Those of a checkpoint that open-pi-zero's authors published, by its name; None for any other file."""
    if not _PUBLISHED.fullmatch(file_name):
        return None
    return {"vlm_rope_theta": 10000.0, "expert_rope_theta": 10000.0, "time_period": 10000.0, "soft_cap": 50.0}


def plain(key: str) -> str:
    """A published name without what torch.compile added."""
    return key.replace(_COMPILED, "")


def rename_for(layout: Foreign, tied: bool) -> Callable[[str], str | None]:
    """The function from a file's tensor name to the model's, or None where the tensor is knowingly unused.

    ``tied``: the model has one expert for both kinds of token; the file's second copy is then left.
    """
    return _from_open_pi_zero(tied) if layout == "open-pi-zero" else _from_paligemma


def _from_open_pi_zero(tied: bool) -> Callable[[str], str | None]:
    def rename(key: str) -> str | None:
        for ours, theirs, _ in RENAMES:
            if plain(key).startswith(theirs):
                return None if tied and ours == "experts.proprio." else ours + plain(key).removeprefix(theirs)
        return _NOWHERE + key

    return rename


def _from_paligemma(key: str) -> str | None:
    name = key
    for old, new in (_PALIGEMMA_GENERATIONS[-1], *_PALIGEMMA_GENERATIONS[:-1]):
        if name.startswith(old):
            name = new + name.removeprefix(old)
    if name.startswith(_PALIGEMMA_UNUSED):
        return None
    for ours, _, theirs in RENAMES:
        if theirs is not None and name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return _NOWHERE + key


def published_names(name: str, tied: bool) -> Iterator[str]:
    """What open-pi-zero calls a tensor of ours: two names for those of a tied expert."""
    for ours, theirs, _ in RENAMES:
        if name.startswith(ours):
            yield theirs + name.removeprefix(ours)
            if tied and ours == "experts.action.":
                yield "joint_model.mixtures.proprio." + name.removeprefix(ours)
            return
    raise ValueError(f"{name} has no published name")


def is_open_pi_zero(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of an open-pi-zero checkpoint."""
    return any(plain(name).startswith("joint_model.mixtures.") for name in names)


def detect_layout(names: Iterable[str], source: str) -> str:
    """Which layout a file's tensor names show. Raises UserError for weights that no form of this model takes."""
    names = {plain(name) for name in names}
    if any(name.removeprefix("model.").startswith(_OPENPI) for name in names):
        raise openpi_error(source)
    if any(".lora_A" in name for name in names):
        raise UserError(
            f"{source} holds adapters (lora_A, lora_B). open-pi-zero merges them in evaluation and takes them out in "
            "training, and the file does not say which it was: merge them with its own code and save the result."
        )
    if is_open_pi_zero(names):
        return "open-pi-zero"
    if any(name.startswith(("vlm.stack.", "experts.action.")) for name in names):
        return "vla_ft"
    if any(name.removeprefix("model.").startswith("language_model.") for name in names):
        return "paligemma"
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    raise UserError(f"{source} holds {shown}...: neither π0 nor PaliGemma. Known layouts: {', '.join(LAYOUTS)}.")


def openpi_error(source: str) -> UserError:
    """The refusal of openpi's and LeRobot's π0."""
    return UserError(
        f"{source} is a π0 of openpi (or LeRobot's port of it). Its flow time runs the other way (1 is noise), its "
        "positions, time code and attention differ, so its weights mean something else in open-pi-zero's form, which "
        "this is. Start from PaliGemma (init.path=paligemma-3b-pt-224) or from an open-pi-zero checkpoint "
        "(init.path=pizero-bridge)."
    )
