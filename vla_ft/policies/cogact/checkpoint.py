"""Weights of CogACT from files: our own, the published layout, or OpenVLA's and Prismatic's as a start.

A file that leaves out the parts that were frozen when it was trained is completed from another one, part by part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from vla_ft.errors import UserError, unknown
from vla_ft.policies.cogact.layouts import (
    HEADLESS,
    LAYOUTS,
    PARTS,
    Shapes,
    detect_layout,
    own_names,
    part_of,
    refuse_other_head,
)
from vla_ft.policies.cogact.model import CogAct
from vla_ft.policies.ledger import Ledger, Place, import_state
from vla_ft.policies.tensor_files import TORCH_SUFFIXES, TensorFiles, open_tensors

CHECKPOINTS = "checkpoints"
"""Folder of a published run that holds its ``.pt``; configuration and statistics lie above it."""
STEPS = "step_"
"""Beginning of the names of this tool's own checkpoints."""
START = "start"
"""What our own export writes beside the tensors where it left out frozen parts: the weights that these are of."""
_BASE = "(base) "


@dataclass(frozen=True)
class Weights:
    """Opened files: which tensor of the model each tensor is, and which file each part comes from."""

    source: str
    layout: str
    tensors: TensorFiles
    names: dict[str, str | None]
    """The model's name of each tensor; None for what is knowingly unused."""
    parts: dict[str, str]
    """Part of the model -> its file."""

    @property
    def shapes(self) -> Shapes:
        """Shapes by the model's names."""
        return {name: self.tensors.shape(key) for key, name in self.names.items() if name is not None}

    @property
    def lacking(self) -> list[str]:
        """Parts that no file holds."""
        return [part for part in PARTS if part not in self.parts]


def load_weights(
    model: nn.Module,
    path: str,
    layout: str = "auto",
    *,
    base: str | None = None,
    assign: bool = False,
    place: Place | None = None,
) -> Ledger:
    """Copy the weights of a file or folder into a CogACT model, strictly, and say what became of each tensor.

    ``layout``: ``vla_ft`` (our own), ``cogact`` (a published ``.pt``, or the folder of one), ``prismatic`` (OpenVLA or
    Prismatic, the same without a head: it stays fresh), ``openvla`` (OpenVLA as Hugging Face's shards, as well), or
    ``auto``. ``base``: the file or folder of the parts that ``path`` leaves out. ``assign`` and ``place`` as in
    ``ledger.apply_import``. Raises UserError on any tensor that does not fit, before anything is changed.
    """
    if not isinstance(model, CogAct):
        raise UserError(f"These are CogACT weights, the model is {type(model).__name__}. Choose policy 'cogact'.")
    if layout not in (*LAYOUTS, "auto"):
        raise unknown("weight layout", layout, (*LAYOUTS, "auto"))
    weights = open_weights(path, base)
    if layout not in ("auto", weights.layout):
        raise UserError(
            f"{path} has the layout '{weights.layout}', not '{layout}'. Set init.layout={weights.layout}, or auto."
        )
    return apply_weights(model, weights, assign=assign, place=place)


def open_weights(path: str | Path, base: str | Path | None = None) -> Weights:
    """The tensors of a file or folder, and of ``base`` the parts that it leaves out. Nothing of them is read.

    Raises UserError for a file of other things, and where a part is missing that cannot start fresh.
    """
    weights = _open(path)
    if base is not None:
        weights = _completed(weights, _open(base))
    fresh = ["head"] if weights.layout in HEADLESS else []
    lacking = [part for part in weights.lacking if part not in fresh]
    if not lacking:
        return weights
    if base is not None:
        raise UserError(f"Neither {weights.source} holds {_listed(lacking)}. Name weights with every part as the base.")
    start = weights.tensors.beside.get(START)
    of = f"It was trained from '{start}': init.base={start}" if isinstance(start, str) else "init.base=..."
    raise UserError(
        f"{weights.source} holds {_listed(weights.parts)} and no {_listed(lacking, 'or')}: what was frozen when it was "
        f"trained was left out. Name the weights that the rest is of: {of} (load_vla: base=...). For a fresh head "
        "openvla-7b-prismatic has everything else."
    )


def apply_weights(model: CogAct, weights: Weights, *, assign: bool = False, place: Place | None = None) -> Ledger:
    """Move opened weights into a model; what ``load_weights`` does. Raises UserError before anything is changed."""
    if "head" in weights.parts:
        refuse_other_head(model.config, model.action_dim, weights.shapes, weights.parts["head"])
    ledger = import_state(
        model,
        weights.tensors,
        source=weights.source,
        rename=weights.names.__getitem__,
        may_be_new=lambda name: "head" not in weights.parts and name.startswith(PARTS["head"]),
        assign=assign,
        place=place,
    )
    if len(set(weights.parts.values())) > 1:
        ledger.notes += [f"{part:<9} from {file}" for part, file in weights.parts.items()]
    return ledger


def find_file(path: Path) -> Path:
    """The one ``.pt`` of a published run's folder, or of its ``checkpoints``; any other path as it is.

    Raises UserError for several, for none, and for a run of this tool, which has checkpoints of another form.
    """
    folder = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    if not folder.is_dir():
        return path
    found = sorted(p for p in folder.iterdir() if p.suffix in TORCH_SUFFIXES)
    own = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.startswith(STEPS))
    if own and not found:
        raise UserError(f"{path} is a run of this tool. Training starts from init.path={own[-1]}. {export_words(path)}")
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UserError(f"{folder} holds {len(found)} weight files ({names}). Name the file itself.")
    return found[0]


def export_words(run: str | Path) -> str:
    """How a run of this tool comes to the form that ``load_vla`` takes."""
    return (
        "load_vla takes CogACT's published weights; of a run here make them with `vla-ft export format=cogact "
        f"checkpoint={run} output=FOLDER`."
    )


def _open(path: str | Path) -> Weights:
    """A published file, its run's folder (one ``.pt`` under ``checkpoints``), or our own files."""
    file = find_file(Path(path))
    torch_file = file.is_file() and file.suffix in TORCH_SUFFIXES
    tensors = open_tensors(file, "model") if torch_file else open_tensors(file)
    layout = detect_layout(tensors, str(path))
    names = own_names(tensors, layout)
    held = {part_of(name) for name in names.values() if name is not None}
    return Weights(str(path), layout, tensors, names, {part: str(path) for part in PARTS if part in held})


def _completed(weights: Weights, base: Weights) -> Weights:
    """With the base's tensors of the parts that are lacking; its others stay where they are."""
    lacking = weights.lacking
    if not lacking:
        raise UserError(f"{weights.source} holds every part, nothing is left for {base.source}. Leave out the base.")
    wanted = [key for key, name in base.names.items() if name is not None and part_of(name) in (*lacking, None)]
    return replace(
        weights,
        source=f"{weights.source} with {_listed(set(lacking) & base.parts.keys()) or 'nothing'} of {base.source}",
        tensors=weights.tensors.joined(base.tensors.only(wanted), _BASE),
        names={**weights.names, **{_BASE + key: base.names[key] for key in wanted}},
        parts={part: file for part in PARTS if (file := {**base.parts, **weights.parts}.get(part)) is not None},
    )


def _listed(parts: object, joint: str = "and") -> str:
    """Parts in the model's order, as one says them."""
    names = [part for part in PARTS if part in parts]  # type: ignore[operator]
    return f" {joint} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
