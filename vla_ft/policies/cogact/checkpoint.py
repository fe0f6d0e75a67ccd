"""Weights of CogACT from files: our own and the published layout, whole or as a start without a head."""

from __future__ import annotations

from vla_ft.policies.cogact.model import CogAct

PUBLISHED: tuple[tuple[str, str], ...] = (
    # ours                published: sub-dictionary and name
    ("vlm.vision.", "vision_backbone."),
    ("vlm.projector.", "projector."),
    ("vlm.llm.", "llm_backbone.llm."),
    ("head.", "action_model.net."),
)
"""Beginnings of names. A published ``.pt`` is ``{"model": {sub-dictionary: {name: tensor}}}``."""


def published_name(name: str) -> str:
    """A tensor of the model as published files call it, sub-dictionary first."""
    for ours, theirs in PUBLISHED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"'{name}' is no tensor of {CogAct.__name__}")


def own_name(key: str) -> str | None:
    """Our name of a published tensor; None for one that no part of the model is."""
    for ours, theirs in PUBLISHED:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs).replace(".scale_factor", ".gamma")
    return None
