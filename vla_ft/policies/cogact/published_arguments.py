"""Arguments that callers of the published CogACT give and nothing here reads: one value is taken, others are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vla_ft.errors import UserError, unknown
from vla_ft.policies.cogact.config import HEADS, Config


@dataclass(frozen=True)
class Unread:
    """An argument without effect: the value that says what is done anyway, and why another cannot be asked for."""

    value: Any
    because: str


LOADING = {
    "cache_dir": Unread(None, "nothing is downloaded, and fetched weights lie where VLA_FT_WEIGHTS says"),
    "model_type": Unread("pretrained", "the published loader does not read it either"),
    "past_action_window_size": Unread(0, "the published model sees no past actions"),
    "use_ema": Unread(False, "predictions are the head's own; the average in a published file is not read"),
    "enable_mixed_precision_training": Unread(True, "on a card the vision-language model runs in bfloat16 autocast"),
}
"""Of ``load_vla``; published in ``vla/load.py`` and ``CogACT.from_pretrained``."""
GENERATION = {"do_sample": Unread(False, "no words are generated; actions are drawn from the noise that they start at")}
"""Of ``predict_action``, whose published form hands the rest to Hugging Face's ``generate``; SIMPLER's class gives
this one."""
_BY_WEIGHTS = ("size", "image_size", "action_model_type", "future_action_window_size", "tokenizer")
"""Fields of ``Config`` that ``load_vla`` settles itself."""


def refuse_others(arguments: Mapping[str, Any], known: Mapping[str, Unread], where: str) -> None:
    """Raises UserError for an argument that is not known, or that asks for what is not done."""
    for name, value in arguments.items():
        if name not in known:
            raise unknown(f"argument of {where}", name, known)
        if value != known[name].value:
            raise UserError(f"{name}={value!r} is not offered: {known[name].because}. Leave it out.")


def refuse_token(hf_token: object) -> None:
    """Raises UserError unless a token is text or None: ``load_vla(path, False)`` means another argument."""
    if not isinstance(hf_token, str | Path | None):
        raise UserError(
            f"load_vla's second argument is hf_token, as published, and is {hf_token!r}. Name the one that is meant: "
            "load_for_training=..."
        )


def split_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``Config`` settings among ``load_vla``'s further arguments. Raises UserError for others."""
    own = {field.name for field in fields(Config)} - {*_BY_WEIGHTS}
    for name in settings:
        if name in _BY_WEIGHTS:
            raise UserError(f"{name} is read off the weights. Leave it out.")
        if name not in own and name not in LOADING:
            raise unknown("argument of load_vla", name, (*own, *LOADING))
    refuse_others({name: value for name, value in settings.items() if name in LOADING}, LOADING, "load_vla")
    return {name: value for name, value in settings.items() if name in own}


def checked_config(action_model_type: str, **facts: Any) -> Config:
    """A configuration of arguments that nobody has checked. Raises UserError."""
    if action_model_type not in HEADS:
        raise unknown("action_model_type", action_model_type, HEADS)
    try:
        return TypeAdapter(Config).validate_python({"action_model_type": action_model_type, **facts})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg']}. Give load_vla another value."
        ) from None
