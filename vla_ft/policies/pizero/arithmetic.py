"""The arithmetic in open-pi-zero's training files (``${eval:'1550000 // 1024 * 5'}``), computed without running it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from vla_ft.errors import UserError

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
