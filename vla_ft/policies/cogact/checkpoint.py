"""Weights of CogACT from files: our own, the published layout, or OpenVLA's and Prismatic's as a start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from vla_ft.errors import UserError, unknown
from vla_ft.policies.cogact.config import HEADS, Config
from vla_ft.policies.cogact.model import CogAct
from vla_ft.policies.ledger import Ledger, Place, import_state
from vla_ft.policies.tensor_files import TORCH_SUFFIXES, TensorFiles, open_tensors

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
CHECKPOINTS = "checkpoints"
"""Folder of a published run that holds its ``.pt``; configuration and statistics lie above it."""
_AVERAGE = "ema_diffusion."
_NOWHERE = "(no such part) "


def load_weights(
    model: nn.Module, path: str, layout: str = "auto", *, assign: bool = False, place: Place | None = None
) -> Ledger:
    """Copy the weights of a file or folder into a CogACT model, strictly, and say what became of each tensor.

    ``layout``: ``vla_ft`` (our own), ``cogact`` (a published ``.pt``, or the folder of one), ``prismatic`` (OpenVLA or
    Prismatic, the same without a head: it stays fresh), ``openvla`` (OpenVLA as Hugging Face's shards, as well), or
    ``auto``. ``assign`` and ``place`` as in ``ledger.apply_import``. Raises UserError on any tensor that does not fit,
    before anything is changed.
    """
    if not isinstance(model, CogAct):
        raise UserError(f"These are CogACT weights, the model is {type(model).__name__}. Choose policy 'cogact'.")
    if layout not in (*LAYOUTS, "auto"):
        raise unknown("weight layout", layout, (*LAYOUTS, "auto"))
    state = open_published(Path(path))
    found = detect_layout(state, path)
    if layout not in ("auto", found):
        raise UserError(f"{path} has the layout '{found}', not '{layout}'. Set init.layout={found}, or auto.")
    if found == "cogact":
        refuse_other_head(model.config, model.action_dim, state, path)
    return load_state(model, state, found, path, assign=assign, place=place)


def load_state(
    model: CogAct,
    state: Mapping[str, Tensor],
    layout: str,
    source: str,
    *,
    assign: bool = False,
    place: Place | None = None,
) -> Ledger:
    """``load_weights`` from tensors in memory; ``source`` names them in messages."""
    fresh_head = layout in ("prismatic", "openvla")
    if fresh_head and not any(key.startswith("vision_backbone.") for key in state):
        raise UserError(
            f"{source} holds no image towers: they were frozen when it was trained, and published beside it. Start "
            "from openvla-7b-prismatic, which has everything but the head."
        )
    renames = {"vla_ft": lambda key: key, "openvla": lambda key: own_name(key, HUGGING_FACE)}
    return import_state(
        model,
        state,
        source=source,
        rename=renames.get(layout, own_name),
        may_be_new=lambda name: fresh_head and name.startswith("head."),
        assign=assign,
        place=place,
    )


def open_published(path: Path) -> TensorFiles:
    """Tensors of a published file, its run's folder (one ``.pt`` under ``checkpoints``), or our own files."""
    path = find_file(path)
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        return open_tensors(path, "model")
    return open_tensors(path)


def find_file(path: Path) -> Path:
    """The one ``.pt`` of a published run's folder; any other path as it is. Raises UserError for several."""
    folder = path / CHECKPOINTS
    if not folder.is_dir():
        return path
    found = sorted(p for p in folder.iterdir() if p.suffix in TORCH_SUFFIXES)
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UserError(f"{folder} holds {len(found)} weight files ({names}). Name the file itself.")
    return found[0]


def detect_layout(state: Iterable[str], source: str) -> str:
    """Which layout a file's names show. Raises UserError for one that is no CogACT, OpenVLA or Prismatic."""
    names = set(state)
    if "head.positional_embedding" in names:
        return "vla_ft"
    if "projector.projector.0.weight" in names:
        return "cogact" if "action_model.net.positional_embedding" in names else "prismatic"
    if "projector.fc1.weight" in names and "language_model.lm_head.weight" in names:
        return "openvla"
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    raise UserError(f"{source} holds {shown}...: no CogACT, OpenVLA or Prismatic checkpoint.")


def refuse_other_head(config: Config, action_dim: int, state: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError, with the settings that fit, where a file's head is not the configuration's."""
    width, depth, horizon, actions = head_shape(state)
    own = (config.dit.width, config.dit.depth, config.horizon, action_dim)
    if own == (width, depth, horizon, actions):
        return
    name = next((n for n, size in HEADS.items() if (size.width, size.depth) == (width, depth)), f"width {width}")
    if own[:2] != (width, depth):
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


def head_shape(state: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """(width, depth, actions in a chunk, action dimensions) of a published head, from its tensors' shapes."""
    prefix = "action_model.net."
    positions, width = state[prefix + "positional_embedding"].shape
    numbers = [int(m[1]) for key in state if (m := re.match(re.escape(prefix) + r"blocks\.(\d+)\.", key))]
    return width, 1 + max(numbers, default=-1), positions - 1, state[prefix + "x_embedder.linear.weight"].shape[1]


def published_name(name: str) -> str:
    """A tensor of the model as published files call it, sub-dictionary first."""
    for ours, theirs in PUBLISHED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"'{name}' is no tensor of {CogAct.__name__}")


def own_name(key: str, beginnings: tuple[tuple[str, str], ...] = PUBLISHED) -> str | None:
    """The model's name of a published tensor. The average that runs with ``use_ema`` add is knowingly unused."""
    if key.startswith(_AVERAGE):
        return None
    for ours, theirs in beginnings:
        if key.startswith(theirs):
            # Hugging Face's OpenVLA calls DINOv2's scales otherwise.
            return ours + key.removeprefix(theirs).replace(".scale_factor", ".gamma")
    return _NOWHERE + key
