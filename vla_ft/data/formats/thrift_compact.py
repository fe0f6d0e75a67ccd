"""Reading structures of Thrift's compact protocol (apache/thrift, ``thrift-compact-protocol.md``)."""

from __future__ import annotations

import struct
from typing import Any

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_DEEPEST = 16


def read_struct(data: bytes, position: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The structure at ``position`` as field number -> value, and where it ends. Raises IndexError when ``data`` ends
    inside it, ValueError when it is no such structure."""
    if depth > _DEEPEST:
        raise ValueError("Thrift structures nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = data[position]
        position += 1
        if head == 0:
            return fields, position
        if head >> 4:
            number += head >> 4
        else:
            number, position = _zigzag(data, position)
        kind = head & 0x0F
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], position = _value(data, position, kind, depth)


def _value(data: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        return _zigzag(data, position)
    if kind in (_BYTE, _TRUE, _FALSE):  # as elements of lists, booleans take a byte
        return data[position], position + 1
    if kind == _DOUBLE:
        if position + 8 > len(data):
            raise IndexError
        return struct.unpack_from("<d", data, position)[0], position + 8
    if kind == _BINARY:
        length, position = _varint(data, position)
        if position + length > len(data):
            raise IndexError
        return data[position : position + length], position + length
    if kind in (_LIST, _SET):
        return _list(data, position, depth)
    if kind == _STRUCT:
        return read_struct(data, position, depth + 1)
    raise ValueError(f"Thrift value of kind {kind}")


def _list(data: bytes, position: int, depth: int) -> tuple[list[Any], int]:
    head = data[position]
    position += 1
    size = head >> 4
    if size == 15:
        size, position = _varint(data, position)
    values = []
    for _ in range(size):
        value, position = _value(data, position, head & 0x0F, depth + 1)
        values.append(value)
    return values, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a Thrift number of more than 64 bits")


def _zigzag(data: bytes, position: int) -> tuple[int, int]:
    value, position = _varint(data, position)
    return (value >> 1) ^ -(value & 1), position
