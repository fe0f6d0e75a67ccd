"""Weights of RDT from files: published ones in all their forms, our own, and SigLIP's for the image tower."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from vla_ft.errors import UserError, unknown
from vla_ft.policies.ledger import Ledger, Place, import_state
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.published_config import FILE, read_config, refuse_other
from vla_ft.policies.tensor_files import TensorFiles, open_tensors
from vla_ft.weights.places import resolve

LAYOUTS = ("vla_ft", "rdt", "deepspeed", "siglip")
TOWER = "vision.tower."
"""Where the image tower lies in our model; published RDT weights do not hold it."""
_FOREIGN_TOWER = "(siglip) "
_SIGN = "model.x_pos_embed"
DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
_MODULE = "module"
"""Part of a DeepSpeed file that holds the weights."""


def load_weights(
    model: nn.Module, path: str, layout: str = "auto", *, assign: bool = False, place: Place | None = None
) -> Ledger:
    """Copy weights into an RDT model, strictly, and say what became of each tensor.

    ``path`` and ``layout``: ``rdt``, a hub folder or one that the published training saved (config.json with
    ``model.safetensors`` or ``pytorch_model.bin``), or its weights file; ``deepspeed``, a file of DeepSpeed's
    (``mp_rank_00_model_states.pt``, or its folder), whose part ``module`` is taken; ``vla_ft``, our own export;
    ``siglip``, the image tower alone, the rest stays fresh; or ``auto``. Published weights hold no image tower: it
    comes from ``model.vision.weights``. A config.json beside the weights or a folder up must agree with the
    configuration.
    ``assign`` and ``place`` as in ``ledger.apply_import``. Raises UserError before anything is changed.
    """
    if not isinstance(model, Rdt):
        raise UserError(f"These are RDT weights, the model is {type(model).__name__}. Choose policy 'rdt'.")
    if layout not in (*LAYOUTS, "auto"):
        raise unknown("weight layout", layout, (*LAYOUTS, "auto"))
    state = _open(Path(path), layout)
    layout = layout if layout != "auto" else detect_layout(state, path)
    if layout == "siglip":
        state = TensorFiles(path, {}).joined(state, _FOREIGN_TOWER)
    elif layout in ("rdt", "deepspeed"):
        _check_config(Path(path), model.config)
        state = _with_tower(state, model.config)
    return import_state(
        model,
        state,
        source=state.source,
        rename=rename,
        may_be_new=lambda name: _may_be_new(name, layout, model.config),
        assign=assign,
        place=place,
    )


def rename(key: str) -> str | None:
    """From a file's name to ours; None for what is knowingly unused: SigLIP's text half and its pooling head."""
    if not key.startswith(_FOREIGN_TOWER):
        return key
    bare = key.removeprefix(_FOREIGN_TOWER)
    if bare.startswith(("text_model.", "logit_", "vision_model.head.")) or bare.endswith("position_ids"):
        return None
    return TOWER + bare.removeprefix("vision_model.")


def detect_layout(state: Iterable[str], source: str) -> str:
    """Which layout a file's tensor names show."""
    names = set(state)
    if _SIGN in names:
        return "vla_ft" if any(name.startswith(TOWER) for name in names) else "rdt"
    if "vision_model.embeddings.patch_embedding.weight" in names:
        return "siglip"
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    raise UserError(f"{source} holds {shown}...: neither RDT nor SigLIP. Known layouts: {', '.join(LAYOUTS)}.")


def _may_be_new(name: str, layout: str, config: Config) -> bool:
    """The tower beside published weights, where the configuration asks for a fresh one; all else beside SigLIP's."""
    if layout == "siglip":
        return not name.startswith(TOWER)
    return layout != "vla_ft" and config.vision.weights is None and name.startswith(TOWER)


def _open(path: Path, layout: str) -> TensorFiles:
    if (path / DEEPSPEED_FILE).is_file():
        return open_tensors(path / DEEPSPEED_FILE, _MODULE)
    if layout == "deepspeed":
        return open_tensors(path, _MODULE)
    if layout == "auto" and path.suffix == ".pt":
        try:
            return open_tensors(path)
        except UserError as plain:
            try:
                return open_tensors(path, _MODULE)  # the published code takes any .pt for DeepSpeed's
            except UserError:
                raise plain from None
    return open_tensors(path)


def _check_config(path: Path, config: Config) -> None:
    """Beside the weights, or a folder up: published training puts DeepSpeed's file and the average into one below."""
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    beside, above = folder / FILE, folder.parent / FILE
    if beside.is_file() or _is_rdt(above):
        refuse_other(read_config(beside if beside.is_file() else above), config, str(path))


def _is_rdt(path: Path) -> bool:
    """Whether a configuration of RDT is there; what lies a folder up may be anything."""
    try:
        return bool(read_config(path))
    except UserError:
        return False


def _with_tower(state: TensorFiles, config: Config) -> TensorFiles:
    if config.vision.weights is None:
        return state
    try:
        tower = open_tensors(resolve(config.vision.weights))
    except UserError as error:
        raise UserError(
            f"{error} RDT's published weights hold no image tower: it is read from model.vision.weights="
            f"{config.vision.weights}."
        ) from None
    return state.joined(tower, _FOREIGN_TOWER)
