"""What ``vla_ft`` says, in words that can be typed in this project: a key that a sentence offers is the guide's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import cache
from typing import Any, get_args, get_type_hints

from policy.act.translator import COUNTED_IN_EPOCHS, FLAGS, GUIDE_WORDS
from vla_ft.config import RunConfig
from vla_ft.errors import EndedByPeer, UserError
from vla_ft.policies.act.config import Config
from vla_ft.training.known_errors import explain

_OTHER = {"freeze": "encoder.freeze=true", "frozen_features.parts": "encoder.cache=true"}
"""Keys whose values are called otherwise here; the sentences that offer them mean these."""
_CODE = re.compile(r"(`[^`]*`|vla-ft (?:train|data|plan|fetch|evaluate) [^;\n]*)")
_KEY = re.compile(r"(?<![\w./=-])([a-z_]+(?:\.[a-z_]+)*)(?:(=)(\[[^\]]*\]|[^\s,;:)`]*[^\s,;:)`.])?)?(?![\w/])")


def in_guide_words(said: str) -> str:
    """A sentence with ``optimizer.lr=1e-5`` as ``--lr=1e-5``; keys without a word of the guide as ``--vla_ft.KEY=``.

    Commands, which are typed as they stand, stay as they are.
    """
    parts = _CODE.split(said)
    parts[::2] = [_KEY.sub(_word, part) for part in parts[::2]]
    return "".join(parts)


def typable(run: Callable[[], int]) -> int:
    """Call ``run``; mistakes, and errors whose cause is known, name the guide's keys. Raises UserError for these."""
    try:
        return run()
    except EndedByPeer:
        raise
    except UserError as mistake:
        raise UserError(in_guide_words(str(mistake))) from mistake
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        raise UserError(in_guide_words(known)) from error


def _word(found: re.Match[str]) -> str:
    key, equals, value = found[1], found[2] or "", found[3] or ""
    # A word without a dot may be plain English, such as "output"; with "=" it is a key.
    if key not in own_keys() or not (equals or "." in key):
        return found[0]
    if key == "logging.wandb":  # W&B's own variable decides, once --wandb_project is given
        return f"WANDB_MODE{equals}{value}"
    if key in _OTHER:
        return f"--{_OTHER[key]}"
    if key in FLAGS:
        return f"--{FLAGS[key]}" + (f"={value}" if value else "")
    word = GUIDE_WORDS.get(key, f"vla_ft.{key}")
    if key in COUNTED_IN_EPOCHS or not value:
        return f"--{word}" if equals else word
    return f"--{word}={value}"


@cache
def own_keys() -> frozenset[str]:
    """Every key of a run of ``vla_ft`` that trains ACT, dotted."""
    return frozenset({*_keys(RunConfig), *(f"model.{name}" for name in _keys(Config))})


def _keys(section: Any) -> list[str]:
    found = []
    for name, kind in get_type_hints(section).items():
        if name not in {field.name for field in dataclasses.fields(section)}:
            continue
        found.append(name)
        below = next((one for one in (kind, *get_args(kind)) if dataclasses.is_dataclass(one)), None)
        found += [f"{name}.{key}" for key in _keys(below)] if below else []
    return found
