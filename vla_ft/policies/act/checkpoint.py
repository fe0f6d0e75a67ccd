"""Weights of ACT from files: our own, the original's, LeRobot's, or published weights for the image trunk alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from vla_ft.errors import UserError, unknown
from vla_ft.policies.act import trunks
from vla_ft.policies.act.lerobot import CONFIG_FILE, OLD_STATISTICS
from vla_ft.policies.act.lerobot_folder import published_settings
from vla_ft.policies.act.model import Act
from vla_ft.policies.act.names import COLUMNS, our_name, published_name
from vla_ft.policies.ledger import Ledger, Place, import_state
from vla_ft.policies.published import folder_of, kind_of

LAYOUTS = ("vla_ft", "original", "lerobot", *trunks.LAYOUTS)
_SIGNS = {
    "original": "transformer.encoder.layers.0.linear1.weight",
    "lerobot": "encoder_latent_input_proj.weight",
    "vla_ft": "project_latent.weight",
}
"""A tensor that only this layout has."""
_NOWHERE = "(no such part) "


def load_weights(
    model: nn.Module, path: str, layout: str = "auto", *, assign: bool = False, place: Place | None = None
) -> Ledger:
    """Copy the weights of a file into an ACT model, strictly, and say what became of each tensor.

    ``layout``: ``vla_ft`` (our own), ``original`` (``policy_*.ckpt`` of tonyzhaozh/act), ``lerobot`` (the folder of an
    ``act`` policy, or its ``model.safetensors``); for the image trunk alone ``torchvision`` (a ResNet's state dict),
    ``pri3d`` (as published, or converted) and ``clip`` (ViT-B/32 by OpenAI's and open_clip's or by Hugging Face's
    names); or ``auto``. Number of heads and the activation leave no trace in weights: they are the configuration's.
    ``assign`` and ``place`` as in ``ledger.apply_import``.
    Raises UserError on any tensor that does not fit, before anything is changed.
    """
    if not isinstance(model, Act):
        raise UserError(f"These are ACT weights, the model is {type(model).__name__}. Choose policy 'act'.")
    if layout not in (*LAYOUTS, "auto"):
        raise unknown("weight layout", layout, (*LAYOUTS, "auto"))
    state = trunks.open_trunk(Path(path))
    layout = layout if layout != "auto" else detect_layout(state, path)
    notes = _check_settings(model, Path(path)) if layout == "lerobot" else []
    ledger = load_state(model, state, layout, path, assign=assign, place=place)
    ledger.notes += notes
    return ledger


def load_state(
    model: Act,
    state: Mapping[str, Tensor],
    layout: str,
    source: str,
    *,
    assign: bool = False,
    place: Place | None = None,
) -> Ledger:
    """``load_weights`` from tensors in memory; ``source`` names them in messages."""
    if layout in trunks.LAYOUTS:
        return trunks.load_trunk(model, state, layout, source, assign=assign, place=place)
    _check_decoder_output(model, layout, source)
    _check_environment(model, state, layout, source)
    return import_state(
        model,
        state,
        source=source,
        rename=rename_for(model, layout),
        may_be_new=lambda name: name.startswith("step_positions."),  # weights of one observation step have none
        assign=assign,
        place=place,
    )


def rename_for(model: Act, layout: str) -> Callable[[str], str | None]:
    """The function from a file's tensor name to the model's, or to None where the tensor is knowingly unused."""
    if layout == "vla_ft":
        return _rename_own
    if layout not in COLUMNS:
        raise unknown("weight layout", layout, COLUMNS)

    def rename(key: str) -> str | None:
        bare = key.removeprefix("model.")
        if bare.endswith("num_batches_tracked") or (layout == "lerobot" and bare.startswith(OLD_STATISTICS)):
            return None
        name = our_name(bare, layout)
        if name is None:
            return _NOWHERE + key
        return None if layout == "original" and _is_dead(name, model) else name

    return rename


def _rename_own(key: str) -> str | None:
    """Our own names; ``act-train-N.pth`` (``examples/act_guide``) has the statistics beside the model, and they come
    from the dataset of the run."""
    return None if key.startswith("statistics.") else key.removeprefix("model.")


def detect_layout(state: Iterable[str], source: str) -> str:
    """Which layout a file's tensor names show."""
    names = {key.removeprefix("model.") for key in state}
    for layout, sign in _SIGNS.items():
        if sign in names:
            return layout
    if (trunk := trunks.detect(state)) is not None:
        return trunk
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    raise UserError(f"{source} holds {shown}...: no ACT model and no trunk. Known layouts: {', '.join(LAYOUTS)}.")


def _is_dead(name: str, model: Act) -> bool:
    """Parts of the original that its predictions never depend on, and that ``model`` leaves out."""
    if name.startswith("pad_head."):
        return model.pad_head is None
    # The original reads its first decoder layer: a model of one layer is the same function.
    return (
        name.startswith("decoder.layers.")
        and model.config.decoder_layers == 1
        and not name.startswith("decoder.layers.0.")
    )


def _check_settings(model: Act, path: Path) -> list[str]:
    """Compare what leaves no trace in weights with their folder's ``config.json``. Returns notes for the ledger."""
    folder = folder_of(path)
    if kind_of(folder) != "act":
        return [f"no {CONFIG_FILE} beside them: heads and activation are as configured, and could be others"]
    settings = published_settings(folder)
    for name in ("heads", "activation"):
        if getattr(model.config, name) != settings[name]:
            raise UserError(
                f"{folder} was trained with {name}={settings[name]}, the model has {getattr(model.config, name)}: its "
                f"weights would load and predict noise. Set model.{name}={settings[name]}, or leave it out."
            )
    return ["statistics: of this run's data, as LeRobot does when it goes on from weights; the folder's are not used"]


def _check_environment(model: Act, state: Mapping[str, Tensor], layout: str, source: str) -> None:
    """The one input of published weights that no dataset here records: said in words, not in tensor names."""
    name = f"model.{published_name('project_env_state.weight', 'lerobot')}"
    if layout == "lerobot" and name in state and model.project_env_state is None:
        raise UserError(
            f"{source} reads an environment state (observation.environment_state), which the dataset does not bring: "
            "such a policy can be run (vla_ft.deployment), not trained further. Start from one that reads cameras."
        )


def _check_decoder_output(model: Act, layout: str, source: str) -> None:
    """The weights cannot show which decoder layer was read; a wrong one would load and predict noise."""
    read = {"original": "first", "lerobot": "last"}.get(layout)
    config = model.config
    if read is not None and config.decoder_layers > 1 and config.decoder_output != read:
        raise UserError(
            f"{source} was trained reading the {read} decoder layer, the configuration reads the "
            f"{config.decoder_output} of {config.decoder_layers}. Set decoder_output={read}"
            + (" (or decoder_layers=1, the same function)." if layout == "original" else ".")
        )
