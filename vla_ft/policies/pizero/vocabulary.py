"""Reading a training file of open-pi-zero (``config/train/*.yaml``): its keys, interpolations and arithmetic."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_ft.errors import UserError, nearest

T = TypeVar("T")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"int": int, "float": float, "round": round, "max": max, "min": min}


def arithmetic(text: str) -> int | float:
    """The value of an expression of numbers, ``+ - * / // %``, and int, float, round, min and max. Raises UserError.

    The published resolver hands such text to Python, which would run any program that a file contains.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, TypeError, OverflowError) as error:
        raise UserError(f"'{text}' is no arithmetic of numbers ({error}). Write the number itself.") from None


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise ValueError(f"{node.func.id} is none of {', '.join(_FUNCTIONS)}")
        return _FUNCTIONS[node.func.id](*map(_value, node.args))
    raise ValueError(f"{type(node).__name__} is not allowed")


class Document:
    """The values of a file by dotted key. What is never asked for is a key that nobody understands."""

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source = source
        self._values = dict(values)
        self._asked: set[str] = set()

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
        OmegaConf.register_resolver("eval", arithmetic, replace=True)
        OmegaConf.register_resolver("now", lambda pattern: "", replace=True)  # hydra's names of folders
        try:
            return cls(str(path), _flat(loaded, ""))
        except OmegaConfBaseException as error:
            raise UserError(f"{path} cannot be resolved: {' '.join(str(error).split())}") from None
        finally:
            OmegaConf.clear_resolver("eval")
            OmegaConf.clear_resolver("now")

    def take(self, key: str, default: T) -> T:
        """The value of a key, of the kind of ``default`` (which null and absent keys take). Raises UserError."""
        self._asked.add(key)
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]
        if default is not None and type(value) is not type(default):
            raise UserError(f"{key} in {self.source} is {value!r}, expected {type(default).__name__}.")
        return value  # type: ignore[no-any-return]

    def expect(self, key: str, *allowed: Any, because: str) -> None:
        """Ask for a key that has to have one of some values. Raises UserError with the reason."""
        value = self.take(key, None)
        if value is not None and value not in allowed:
            raise UserError(f"{key} is {value!r} in {self.source}: {because}")

    def ignore(self, *beginnings: str) -> list[str]:
        """Keys that are understood and change nothing here; returns those that the file has."""
        found = [key for key in self._values if key.startswith(beginnings)]
        self._asked.update(found)
        return found

    def finish(self) -> None:
        """Raise UserError for keys that nobody asked for."""
        strange = sorted(self._values.keys() - self._asked)
        if strange:
            hints = "".join(nearest(strange[0], self._asked))
            raise UserError(f"{self.source} has keys that open-pi-zero does not: {', '.join(strange[:4])}.{hints}")


def _flat(config: DictConfig, prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in config:
        name, value = f"{prefix}{key!s}", config[key]
        if isinstance(value, DictConfig):
            values |= _flat(value, f"{name}.")
        else:
            values[name] = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    return values
