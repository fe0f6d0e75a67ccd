"""Reading a training file of open-pi-zero: interpolations, hydra's words over it, and every value against the table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_ft.errors import UserError, nearest
from vla_ft.policies.pizero.arithmetic import arithmetic
from vla_ft.policies.pizero.vocabulary import KEYS, SUBTREES, Constant, SameAs, Setting, Without

_VARIABLE = re.compile(r"Environment variable '(\w+)' not found")
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", list: "a list of numbers"}


class Document:
    """A file's values by dotted key: known keys alone, each of its kind and in its range."""

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        """Raises UserError for keys that no file of open-pi-zero has, and for values that mean nothing here."""
        self.source = source
        own = {key: value for key, value in values.items() if not key.startswith(SUBTREES)}
        strange = sorted(own.keys() - KEYS.keys())
        if strange:
            raise UserError(
                f"{source} has keys that no known training file of open-pi-zero has: {', '.join(strange[:4])}."
                f"{nearest(strange[0], KEYS)} docs/pizero_keys.md lists them."
            )
        self._values = {key: self._checked(key, value) for key, value in own.items()}
        for key in self._values:
            self._compare(key)

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Document:
        """A YAML file with hydra's ``key=value`` words over it. Raises UserError."""
        if not path.is_file():
            raise UserError(f"There is no file {path}. Give one of open-pi-zero's config/train/*.yaml.")
        try:
            loaded = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        except Exception as error:  # the YAML library's errors have no common base that OmegaConf exports
            raise UserError(f"{path} with {' '.join(overrides) or 'no overrides'} cannot be read: {error}") from None
        if not isinstance(loaded, DictConfig):
            raise UserError(f"{path} holds a list, expected keys with values.")
        return cls(str(path), _resolved(path, loaded))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def said(self) -> dict[str, Any]:
        """What the file says, by key."""
        return dict(self._values)

    def __getitem__(self, key: str) -> Any:
        """The value of a setting, or its default where the file leaves it out; None is null, or no default."""
        known = KEYS[key]
        return self._values.get(key, known.default if isinstance(known, Setting) else None)

    def wrong(self, key: str, expected: str) -> UserError:
        """The error for a key's value."""
        value = self._values.get(key)
        return UserError(f"{key} in {self.source} is {'null' if value is None else repr(value)}, expected {expected}.")

    def _checked(self, key: str, value: Any) -> Any:
        known = KEYS[key]
        if isinstance(known, Setting | Without):
            if value is None and known.null:
                return None
            value = _of_kind(value, known.kind)
        problem = _problem(known, value)
        if problem is None:
            return value
        shown = "null" if value is None else repr(value)
        raise UserError(f"{key} is {shown} in {self.source}: {problem}.")

    def _compare(self, key: str) -> None:
        known = KEYS[key]
        if isinstance(known, SameAs) and self._values[key] != (expected := self._meant(known.key)):
            raise self.wrong(key, f"{'null' if expected is None else repr(expected)} as {known.key}")

    def _meant(self, key: str) -> Any:
        """The value of any key, or what a file means that leaves it out."""
        known = KEYS[key]
        if key in self._values or isinstance(known, Setting):
            return self._values[key] if key in self._values else self[key]
        return self._meant(known.key) if isinstance(known, SameAs) else getattr(known, "values", (None,))[0]


def _resolved(path: Path, loaded: DictConfig) -> dict[str, Any]:
    started = datetime.now()
    OmegaConf.register_resolver("eval", arithmetic, replace=True)
    OmegaConf.register_resolver(
        "now", lambda pattern: started.strftime(pattern), replace=True
    )  # hydra's, for names of folders
    try:
        return _flat(loaded, "")
    except OmegaConfBaseException as error:
        said = " ".join(str(error).split())
        if variable := _VARIABLE.search(said):
            name = variable.group(1)
            raise UserError(f"{path} needs the environment variable {name}: export {name}=... first.") from None
        raise UserError(f"{path} cannot be resolved: {said}") from None
    finally:
        OmegaConf.clear_resolver("eval")
        OmegaConf.clear_resolver("now")


def _of_kind(value: Any, kind: type) -> Any:
    """The value as ``kind`` where it is one: numbers are not told apart by how they are written."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if kind is float else value


def _problem(known: Setting | Constant | SameAs | Without, value: Any) -> str | None:
    """What is wrong with a value, None where nothing is."""
    if isinstance(known, SameAs):
        return None
    if isinstance(known, Constant):
        return None if value in known.values else known.because
    off = " or null" if known.null else ""
    if type(value) is not known.kind:
        return f"expected {_KINDS[known.kind]}{off}"
    return None if isinstance(known, Without) else _out_of_range(known, value, off)


def _out_of_range(known: Setting, value: Any, off: str) -> str | None:
    if value == "":
        return f"expected text{off}"
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if isinstance(value, list) and not all(type(one) in (int, float) and one > 0 for one in value):
        return "expected numbers above 0"
    if known.choices and value not in known.choices:
        return f"expected {', '.join(known.choices)}{off}"
    if known.above is not None and not value > known.above:
        return f"expected more than {known.above:g}{off}"
    if known.least is not None and not value >= known.least:
        return f"expected {known.least:g} or more"
    if known.below is not None and not value < known.below:
        return f"expected less than {known.below:g}"
    return None


def _flat(config: DictConfig, prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in config:
        name, value = f"{prefix}{key!s}", config[key]
        if isinstance(value, DictConfig):
            values |= _flat(value, f"{name}.")
        else:
            values[name] = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    return values
