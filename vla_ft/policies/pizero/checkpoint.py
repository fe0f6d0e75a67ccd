"""Weights of π0 from files: our own, open-pi-zero's, or PaliGemma as a start; and back to open-pi-zero's."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError, unknown
from vla_ft.policies.ledger import Ledger, Place, import_state
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.layouts import (
    LAYOUTS,
    constants,
    detect_layout,
    openpi_error,
    plain,
    published_constants,
    published_names,
    rename_for,
)
from vla_ft.policies.pizero.model import PiZero
from vla_ft.policies.tensor_files import TORCH_SUFFIXES, TensorFiles, open_tensors

CONSTANTS = "constants"
"""Where exported files keep them: in the metadata of safetensors as JSON, beside ``model`` in a torch file."""
SETTINGS = "settings"
"""The fields of ``model`` as JSON, in a torch file alone: all but the tokenizer, which is a place, and the widths."""
DESCRIPTION = "description"
"""The data's as JSON, in a torch file alone: which actions are grippers, what the dimensions are called and are."""
_NOT_RECORDED = ("tokenizer", "constants_confirmed", "action_dim", "proprio_dim")
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "params")


def load_weights(
    model: nn.Module, path: str, layout: str = "auto", *, assign: bool = False, place: Place | None = None
) -> Ledger:
    """Copy the weights of a file or folder into a π0 model, strictly, and say what became of each tensor.

    ``layout``: ``vla_ft`` (our own), ``open-pi-zero`` (``step*.pt``), ``paligemma`` (Hugging Face's, of any generation;
    the experts stay fresh), or ``auto``. ``assign`` and ``place`` as in ``ledger.apply_import``.
    Raises UserError before anything is changed: on any tensor that does not fit, on weights that were made with other
    constants than the configuration's, and on openpi's.
    """
    if not isinstance(model, PiZero):
        raise UserError(f"These are π0 weights, the model is {type(model).__name__}. Choose policy 'pizero'.")
    if layout not in (*LAYOUTS, "auto"):
        raise unknown("weight layout", layout, (*LAYOUTS, "auto"))
    state = open_weights(Path(path))
    found = detect_layout(state, path)
    if layout not in ("auto", found):
        raise UserError(f"{path} has the layout '{found}', not '{layout}'. Set init.layout={found}, or auto.")
    note = "" if found == "paligemma" else check_constants(model.config, state.beside, path, found)
    ledger = load_state(model, state, found, path, assign=assign, place=place)
    ledger.notes += [note] if note else []
    return ledger


def load_state(
    model: PiZero,
    state: Mapping[str, Tensor],
    layout: str,
    source: str,
    *,
    assign: bool = False,
    place: Place | None = None,
) -> Ledger:
    """``load_weights`` from tensors in memory; ``source`` names them in messages."""
    if layout == "vla_ft":
        return import_state(model, state, source=source, assign=assign, place=place)
    tied = model.config.tie_experts
    if layout == "open-pi-zero":
        if tied:
            _refuse_different_experts(state, source)
        rename = rename_for("open-pi-zero", tied)
        return import_state(model, state, source=source, rename=rename, assign=assign, place=place)
    return import_state(
        model,
        state,
        source=source,
        rename=rename_for("paligemma", tied),
        may_be_new=lambda name: not name.startswith("vlm."),
        assign=assign,
        place=place,
    )


def check_constants(config: Config, beside: Mapping[str, object], path: str, layout: str) -> str:
    """Compare what weights were made with to the configuration. Raises UserError where it differs, and for a file of
    open-pi-zero that does not say (a renamed one) under a configuration that leaves them at their defaults.

    Returns a note where the file does not say: the configuration is then believed.
    """
    known, own = file_constants(beside, path), constants(config)
    if known is None:
        shown = ", ".join(f"{name} {value:g}" for name, value in own.items())
        if layout == "open-pi-zero" and not config.constants_confirmed:
            raise UserError(
                f"{path} does not say with which constants it was trained, and no tensor shows them. Published "
                "checkpoints have model.expert_rope_theta=10000 and model.time_period=10000, open-pi-zero's training "
                f"files 100 and 100. Look at its training file; if it is as configured here ({shown}), say "
                "model.constants_confirmed=true."
            )
        return f"the file does not say with which constants it was trained; taken from the configuration: {shown}"
    wrong = [f"model.{name}={known[name]:g} (here {own[name]:g})" for name in own if known[name] != own[name]]
    if wrong:
        raise UserError(
            f"{path} was trained with other constants, which no tensor shows: {', '.join(wrong)}. With the wrong ones "
            "it would load and predict garbage. Set them as given."
        )
    return ""


def file_constants(beside: Mapping[str, object], path: str) -> dict[str, float] | None:
    """What a file says of its constants, or its published name does; None where neither does.

    Raises UserError for a record that is damaged or not whole.
    """
    recorded = beside.get(CONSTANTS)
    if recorded is None:
        return published_constants(Path(path).name)
    try:
        known = json.loads(recorded) if isinstance(recorded, str) else recorded
    except ValueError as error:
        raise UserError(
            f"The constants recorded in {path} cannot be read ({error}). Export the weights again."
        ) from None
    expected = constants(Config())
    lost = [name for name in expected if not isinstance(known, dict) or not isinstance(known.get(name), int | float)]
    if lost:
        raise UserError(
            f"{path} records its constants without {', '.join(lost)}. Export the weights again with `vla-ft export`."
        )
    assert isinstance(known, dict)
    return {name: float(known[name]) for name in expected}


def write_published(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: Config,
    step: int,
    description: DatasetDescription | None = None,
) -> int:
    """Write a checkpoint as open-pi-zero's evaluation reads it: a torch file with the weights under ``model``.

    Our constants, settings and, where it is given, the data's description lie beside them. Holds all
    weights in memory. Returns the number of tensors; tied experts count twice, and are stored once. Raises UserError
    when the disk is full.
    """
    model: dict[str, Tensor] = {}
    for name, tensor in tensors:
        for published in published_names(name, config.tie_experts):
            model[published] = tensor
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_RECORDED}
    content = {"cnt_update": step, "cnt_batch": 0, "model": model, CONSTANTS: constants(config)}
    content[SETTINGS] = json.dumps(settings)
    if description is not None:
        content[DESCRIPTION] = json.dumps(description.to_json())
    beside = path.with_name(f".{path.name}.new")
    try:
        torch.save(content, beside)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise UserError(f"{path} could not be written: {error}. Free space, or name another file.") from None
    finally:
        beside.unlink(missing_ok=True)
    return len(model)


def open_weights(path: Path) -> TensorFiles:
    """The tensors of a file or folder, of a torch file those under ``model`` where there are any. Raises UserError."""
    if path.is_dir() and any((path / name).exists() for name in _ORBAX):
        raise openpi_error(str(path))
    if path.suffix in TORCH_SUFFIXES and path.is_file():
        try:
            return open_tensors(path, "model")
        except UserError:  # a plain state dict, or no weights at all, which the next line says
            return open_tensors(path)
    return open_tensors(path)


def _refuse_different_experts(state: Mapping[str, Tensor], source: str) -> None:
    """A checkpoint of tied experts lists them twice. Were they different, one would be lost in silence."""
    action, proprio = "joint_model.mixtures.action.", "joint_model.mixtures.proprio."
    names = {plain(key): key for key in state}
    for name, key in names.items():
        if not name.startswith(proprio):
            continue
        twin = names.get(action + name.removeprefix(proprio))
        if twin is None or not torch.equal(state[key], state[twin]):
            raise UserError(
                f"{source} has different experts for proprioception and actions ({name}). Set model.tie_experts=false."
            )
