"""Pickled ``observations.npy`` without Python's unpickler: arrays, dicts, lists, text and numbers, and nothing else.

``pickletools.genops`` only takes a pickle apart; what its operations mean is written here, for the few that NumPy's
arrays need. No name in a file is ever imported and nothing in it is ever called: NumPy's constructors are recognised by
name and stand for the two steps that a file describes with them. Whatever else is asked for is refused by its name.
No size in a file is believed before as many bytes are there, and no object is turned to text for a message.
"""

from __future__ import annotations

import enum
import pickletools
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from vla_ft.data.formats.npy_files import NpyError

_DTYPE = re.compile(r"[fiub][1248]|f16|O8?|bool")
_MARK: Any = object()


class _Known(enum.Enum):
    """NumPy's names that may stand in a file."""

    NDARRAY = "numpy ndarray"
    DTYPE = "numpy dtype"
    RECONSTRUCT = "multiarray _reconstruct"
    SCALAR = "multiarray scalar"


_GLOBALS = {
    ("numpy", "ndarray"): _Known.NDARRAY,
    ("numpy", "dtype"): _Known.DTYPE,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Known.RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Known.SCALAR for core in ("core", "_core")},
}


class PickledArray:
    """An array of the file: ``values`` are numbers [shape], or a list of objects when ``objects``."""

    __slots__ = ("objects", "shape", "values")

    def __init__(self) -> None:
        self.values: Any = None
        self.shape: tuple[int, ...] = ()
        self.objects = False


class _Dtype:
    """A dtype in the making: its byte order comes in a step of its own."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class _Bounded:
    """A file that answers a request for more bytes than it has with an error, before any memory is taken."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.left = file, size - file.tell()

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise NpyError(f"the pickle asks for {size} bytes where {self.left} are left: the file is damaged")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(min(self.left, 1024))
        self.left -= len(line)
        return line


def read_pickle(file: IO[bytes], size: int) -> Any:
    """The object that is pickled from the file's position on; ``size`` is that of the whole file, in bytes.

    Arrays come as ``PickledArray`` and share their bytes with nothing else. Raises NpyError for anything but arrays,
    dict, list, tuple, str, bytes and numbers, and for a damaged pickle.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(_Bounded(file, size)):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except NpyError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise NpyError(f"the pickle is damaged ({type(error).__name__}: {error})") from error
    raise NpyError("the pickle has no end")


class _Machine:
    """The stack and memo of a pickle, for the operations that data needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """One operation."""
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANT:
            self.stack.append(_CONSTANT[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise NpyError(
                f"the pickle uses {name}, which no array, dict, text or number needs. Refused; nothing was executed"
            )

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("the stack is empty")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Everything above the last mark, which goes as well."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise ValueError("no mark")

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"expected a {kind.__name__}")
        return self.stack[-1]

    def memoize(self, index: int | None) -> None:
        value = self.pop()
        self.stack.append(value)
        self.memo[len(self.memo) if index is None else index] = value

    def take(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise NpyError("a dict of the pickle has keys that are no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def set_item(self) -> None:
        pair = list(self.take(2))
        self.set_items(pair)

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        known = _GLOBALS.get((module, name))
        if known is None:
            raise NpyError(
                f"the pickle asks for {module[:60]}.{name[:60]}. Only NumPy arrays, dicts, text and numbers "
                "are read. Refused; nothing was executed"
            )
        self.stack.append(known)

    def reduce(self) -> None:
        known, arguments = self.take(2)
        if type(known) is not _Known or type(arguments) is not tuple:
            raise NpyError("the pickle calls what is no constructor of NumPy's. Refused; nothing was executed")
        self.stack.append(_MAKERS[known](arguments))

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if type(state) is not tuple:
            raise NpyError("the pickle sets attributes of an object. Refused; nothing was executed")
        if type(target) is _Dtype:
            _set_dtype(target, state)
        elif type(target) is PickledArray:
            _set_array(target, state)
        else:
            raise NpyError("the pickle sets the state of something that is no array. Refused; nothing was executed")


def _make_array(arguments: tuple[Any, ...]) -> PickledArray:
    if len(arguments) != 3 or arguments[0] is not _Known.NDARRAY or arguments[1] != (0,):
        raise NpyError("an array of the pickle is not made as NumPy makes them")
    return PickledArray()


def _make_dtype(arguments: tuple[Any, ...]) -> _Dtype:
    text = arguments[0] if arguments else None
    if type(text) is not str:
        raise ValueError("a dtype without a name")
    if _DTYPE.fullmatch(text) is None:
        raise NpyError(f"an array of the pickle is of dtype {text[:40]!r}, expected plain numbers")
    return _Dtype(np.dtype(text))


def _make_scalar(arguments: tuple[Any, ...]) -> Any:
    dtype, data = arguments
    if type(dtype) is not _Dtype or type(data) is not bytes or dtype.dtype.hasobject:
        raise NpyError("a number of the pickle is not made as NumPy makes them")
    return np.frombuffer(data, dtype=dtype.dtype, count=1)[0]


def _refuse(_: tuple[Any, ...]) -> Any:
    raise NpyError("the pickle calls a type of NumPy's in a way that no array needs")


_MAKERS: dict[_Known, Callable[[tuple[Any, ...]], Any]] = {
    _Known.RECONSTRUCT: _make_array,
    _Known.DTYPE: _make_dtype,
    _Known.SCALAR: _make_scalar,
    _Known.NDARRAY: _refuse,
}


def _set_dtype(target: _Dtype, state: tuple[Any, ...]) -> None:
    if len(state) < 5 or any(part is not None for part in state[2:5]) or state[1] not in ("<", ">", "|", "="):
        raise NpyError("an array of the pickle has a dtype with fields, expected plain numbers")
    target.dtype = target.dtype.newbyteorder(state[1])


def _set_array(target: PickledArray, state: tuple[Any, ...]) -> None:
    if len(state) != 5 or type(state[2]) is not _Dtype or type(state[1]) is not tuple or target.values is not None:
        raise ValueError("an array without its state")
    _, shape, kind, fortran, data = state
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or len(shape) > 8:
        raise ValueError("an array of impossible shape")  # not told: text of nested tuples may have no end
    count = int(np.prod(shape, dtype=object))
    if kind.dtype.hasobject:
        if type(data) is not list or len(data) != count:
            raise ValueError(f"an array of {count} objects without them")
        target.values, target.objects = data, True
    else:
        if type(data) is not bytes or len(data) != count * kind.dtype.itemsize:
            raise ValueError(f"an array of {count} numbers with {len(data)} bytes")
        target.values = np.frombuffer(data, dtype=kind.dtype).reshape(shape, order="F" if fortran else "C")
    target.shape = shape


def _names(*names: str) -> frozenset[str]:
    return frozenset(names)


_PUSH = _names(
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
)  # fmt: skip
_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


def _find_split(machine: _Machine, argument: str) -> None:
    machine.find(*(argument.split(" ", 1) if " " in argument else (argument, "")))


def _find_stacked(machine: _Machine, _: Any) -> None:
    machine.find(*machine.take(2))


def _get(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(machine.take(count))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": _find_split,
    "STACK_GLOBAL": _find_stacked,
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
    "MEMOIZE": lambda machine, _: machine.memoize(None),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_mark())),
    "SETITEM": lambda machine, _: machine.set_item(),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memoize(index)),
    **{f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)},
}


def observation_dicts(value: Any) -> list[Any] | dict[str, Any]:
    """What ``np.save`` was given: the dicts of an array of dicts [N], or the one dict of arrays. Raises NpyError."""
    if type(value) is not PickledArray or not value.objects:
        raise NpyError("observations.npy holds no array of dicts and no dict of arrays")
    if value.shape == ():
        (only,) = value.values
        if type(only) is not dict:
            raise NpyError(f"observations.npy holds a single {type(only).__name__}, expected a dict of arrays")
        return only
    if len(value.shape) != 1:
        raise NpyError(f"observations.npy holds objects of shape {value.shape}, expected one dict a step")
    return list(value.values)
