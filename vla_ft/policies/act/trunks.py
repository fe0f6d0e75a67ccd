"""Published weights for the image trunk alone: torchvision's ResNets, PRI3D's, and CLIP's image tower in two layouts.

Each is loaded strictly: every tensor of the trunk must be in the file. The rest of the model stays new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.nn.clip import ClipVision
from vla_ft.policies.act.model import Act
from vla_ft.policies.ledger import Ledger, Place, import_state
from vla_ft.policies.tensor_files import TORCH_SUFFIXES, TensorFiles, open_tensors

TRUNK = "vision.trunk."
LAYOUTS = ("torchvision", "pri3d", "clip")
RESNET_SIGN = "layer1.0.conv1.weight"
PRI3D_PREFIX = "backbone.encoder."
"""Where PRI3D's UNet has its ResNet (Sekunde/Pri3D, Res18UNet and Res50UNet)."""
OPENAI_SIGN = "visual.class_embedding"
HUGGING_FACE_SIGN = "vision_model.embeddings.class_embedding"
_PREFIXES = (PRI3D_PREFIX, "encoder.", "backbone.", "model.", "")
"""Where converted PRI3D files have it."""
_UNKNOWN = "(no such part) "

_OPENAI = (
    ("visual.class_embedding", "class_token"),
    ("visual.positional_embedding", "positions"),
    ("visual.conv1.", "patches."),
    ("visual.ln_pre.", "norm_in."),
    ("visual.ln_post.", "norm_out."),
    ("visual.proj", "project.weight"),
)
_OPENAI_LAYER = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.(.+)")
_OPENAI_LAYER_PARTS = (
    ("ln_1.", "norm1."), ("ln_2.", "norm2."), ("mlp.c_fc.", "up."), ("mlp.c_proj.", "down."),
    ("attn.out_proj.", "attention.out."), ("attn.query.", "attention.query."), ("attn.key.", "attention.key."),
    ("attn.value.", "attention.value."),
)  # fmt: skip
_OPENAI_TEXT = (
    "transformer.", "token_embedding.", "ln_final.", "positional_embedding", "text_projection", "logit_scale",
    "input_resolution", "context_length", "vocab_size",
)  # fmt: skip
_HUGGING_FACE = (
    ("vision_model.embeddings.class_embedding", "class_token"),
    ("vision_model.embeddings.position_embedding.weight", "positions"),
    ("vision_model.embeddings.patch_embedding.", "patches."),
    ("vision_model.pre_layrnorm.", "norm_in."),
    ("vision_model.post_layernorm.", "norm_out."),
    ("visual_projection.", "project."),
)
_HUGGING_FACE_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_HUGGING_FACE_LAYER_PARTS = (
    ("layer_norm1.", "norm1."), ("layer_norm2.", "norm2."), ("mlp.fc1.", "up."), ("mlp.fc2.", "down."),
    ("self_attn.q_proj.", "attention.query."), ("self_attn.k_proj.", "attention.key."),
    ("self_attn.v_proj.", "attention.value."), ("self_attn.out_proj.", "attention.out."),
)  # fmt: skip
_HUGGING_FACE_TEXT = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")
Table = tuple[tuple[str, str], ...]


def open_trunk(path: Path) -> TensorFiles:
    """The tensors of a file or folder; of a training checkpoint such as PRI3D's (``{"model": ..., "optimizer": ...}``),
    those of its ``model``. Raises UserError."""
    _refuse_other_activation(path)
    try:
        return open_tensors(path)
    except UserError as mistake:
        if path.suffix not in TORCH_SUFFIXES or not path.is_file():
            raise
        try:
            return open_tensors(path, "model")
        except UserError:
            raise mistake from None


def detect(names: Iterable[str]) -> str | None:
    """Which trunk's layout tensor names show, or None."""
    names = {name.removeprefix("module.") for name in names}
    if OPENAI_SIGN in names or HUGGING_FACE_SIGN in names:
        return "clip"
    if RESNET_SIGN in names:
        return "torchvision"
    return "pri3d" if any(prefix + RESNET_SIGN in names for prefix in _PREFIXES) else None


def load_trunk(
    model: Act,
    state: Mapping[str, Tensor],
    layout: str,
    source: str,
    *,
    assign: bool = False,
    place: Place | None = None,
) -> Ledger:
    """Load a published trunk into ``vision.trunk``; everything else is ``new`` in the ledger, and other parts of the
    file (a text tower, a classifier, PRI3D's decoder) are ``unused``. Raises UserError before anything is changed."""
    if model.vision is None:
        raise UserError(f"{source} holds an image trunk, but this model has no cameras.")
    is_clip = isinstance(model.vision.trunk, ClipVision)
    if is_clip != (layout == "clip"):
        held, set_ = ("CLIP's image tower", "clip_vit_b32") if layout == "clip" else ("a ResNet", "resnet18|34|50")
        raise UserError(f"{source} holds {held}, the model has backbone={model.config.backbone}. Set backbone={set_}.")
    state, rename = _clip(state) if is_clip else _resnet(state, layout, source)

    def full(key: str) -> str | None:
        name = rename(key)
        return name if name is None else TRUNK + name

    return import_state(
        model,
        state,
        source=source,
        rename=full,
        may_be_new=lambda name: not name.startswith(TRUNK),
        assign=assign,
        place=place,
    )


Renamed = tuple[Mapping[str, Tensor], Callable[[str], str | None]]


def _resnet(state: Mapping[str, Tensor], layout: str, source: str) -> Renamed:
    """A ResNet under its prefix. What lies outside the prefix is another part of a network, and not used."""
    bare = {key.removeprefix("module.") for key in state}
    prefixes = [prefix for prefix in (_PREFIXES if layout == "pri3d" else ("",)) if prefix + RESNET_SIGN in bare]
    if not prefixes:
        shown = ", ".join(sorted(state)[:4]) or "nothing"
        expected = f"{PRI3D_PREFIX}{RESNET_SIGN} or {RESNET_SIGN}" if layout == "pri3d" else RESNET_SIGN
        raise UserError(f"{source} holds {shown}...: no ResNet in layout {layout}, which would have {expected}.")
    prefix = prefixes[0]

    def rename(key: str) -> str | None:
        name = key.removeprefix("module.")
        if not name.startswith(prefix):
            return None
        name = name.removeprefix(prefix)
        return None if name.startswith("fc.") or name.endswith("num_batches_tracked") else name

    return state, rename


def _clip(state: Mapping[str, Tensor]) -> Renamed:
    if OPENAI_SIGN in state:
        return _split_attention(state), _by_table(_OPENAI, _OPENAI_LAYER, _OPENAI_LAYER_PARTS, _OPENAI_TEXT)
    table = _by_table(_HUGGING_FACE, _HUGGING_FACE_LAYER, _HUGGING_FACE_LAYER_PARTS, _HUGGING_FACE_TEXT)
    return state, table


def _by_table(table: Table, layer: re.Pattern[str], parts: Table, text: tuple[str, ...]) -> Callable[[str], str | None]:
    """Names of a layout by its tables; None for the ``text`` tower's, and a name that no model has for all others."""

    def rename(key: str) -> str | None:
        match = layer.fullmatch(key)
        if match is not None:
            inner = _replaced(match[2], parts)
            return f"layers.{match[1]}.{inner}" if inner is not None else _UNKNOWN + key
        if key.startswith(text):
            return None
        return _replaced(key, table) or _UNKNOWN + key

    return rename


def _replaced(name: str, table: Table) -> str | None:
    for foreign, ours in table:
        if name.startswith(foreign) and (foreign.endswith(".") or name == foreign):
            return ours + name.removeprefix(foreign)
    return None


def _split_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's layout with query, key and value apart (it stacks them in that order) and the projection transposed, as
    linear layers have theirs. Views: nothing is copied."""
    split: dict[str, Tensor] = {}
    for key, value in state.items():
        stacked = re.fullmatch(r"(visual\..*\.attn\.)in_proj_(weight|bias)", key)
        if stacked is not None and len(value) % 3 == 0:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                split[f"{stacked[1]}{part}.{stacked[2]}"] = third
        else:
            split[key] = value.T if key == "visual.proj" else value
    return split


def _refuse_other_activation(path: Path) -> None:
    """CLIP weights of other publishers have the same names and exact GELU: their configuration tells."""
    if not path.is_dir():
        return
    found = {name: _json(path / name) for name in ("config.json", "open_clip_config.json")}
    vision = found["config.json"].get("vision_config")
    seen = vision.get("hidden_act", "quick_gelu") if isinstance(vision, dict) else "quick_gelu"
    about = found["open_clip_config.json"].get("model_cfg")
    if isinstance(about, dict) and not about.get("quick_gelu"):
        seen = "gelu"
    if seen != "quick_gelu":
        raise UserError(
            f"{path} was trained with {seen}; backbone=clip_vit_b32 computes quick_gelu, as OpenAI's weights need, and "
            "would give other features without an error. Use OpenAI's: vla-ft fetch clip-vit-b-32."
        )


def _json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
