"""Checks plain values against a dataclass: every wrong key, type and range, each told in a sentence."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vla_ft.config.data import DataConfig
from vla_ft.config.optimization import EmaConfig
from vla_ft.config.sections import FrozenFeaturesConfig
from vla_ft.config.values import T
from vla_ft.data.augmentation import AugmentationConfig
from vla_ft.errors import UserError, nearest


def check(kind: type[T], values: dict[str, Any], where: str, prefix: str = "") -> T:
    """Fill the dataclass ``kind`` from plain values. Raises UserError naming every wrong key and what was seen."""
    if getattr(kind, "__pydantic_config__", {}).get("extra") != "forbid":
        raise TypeError(f"{kind.__name__} would swallow mistyped keys: forbid extra ones in its __pydantic_config__")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [_explain(kind, entry, prefix) for entry in error.errors()]
        raise UserError("\n".join(dict.fromkeys(lines)) + f"\n(in {where})") from None


def _explain(kind: type, entry: Any, prefix: str) -> str:
    """One sentence for one of pydantic's errors."""
    path = [str(part) for part in entry["loc"] if part not in ("<name>", "<own>")]
    key = (prefix + ".".join(path)).rstrip(".")
    if entry["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [prefix + name for name in _keys(kind)]
        hint = nearest(key, known)
        if not hint and len(path) > 1:
            siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.3)
            hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"Unknown key '{key}'.{hint}"
    if entry["type"] in ("missing", "missing_argument"):
        return f"Key '{key}' is missing: give {key}=... on the command line or in the recipe."
    message = entry["msg"][0].lower() + entry["msg"][1:]
    expected = entry.get("ctx", {}).get("expected")
    hint = (
        nearest(str(entry["input"]), str(expected).replace("'", "").replace(" or ", ", ").split(", "))
        if expected
        else ""
    )
    return f"Key '{key}' is {entry['input']!r}: {message}.{hint}"


def _keys(kind: Any) -> list[str]:
    """Dotted names of a dataclass's fields, nested ones included."""
    names = []
    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        extras = getattr(hints[item.name], "__metadata__", ())
        names.append(next((alias for extra in extras if (alias := getattr(extra, "alias", None))), item.name))
        default = item.default_factory if item.default_factory is not dataclasses.MISSING else None
        nested = default if dataclasses.is_dataclass(default) else _NESTED.get(item.name)
        if nested is not None:
            names += [f"{item.name}.{name}" for name in _keys(nested)]
    return names


_NESTED = {
    "data": DataConfig,
    "ema": EmaConfig,
    "frozen_features": FrozenFeaturesConfig,
    "augmentation": AugmentationConfig,
}
"""Sections that are null by default or required: what their default does not tell of their keys."""
