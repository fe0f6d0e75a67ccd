"""``tf.train.Example`` without TensorFlow or generated code: its wire format, read in place and written.

An Example is a map from names to lists of bytes, float32 or int64 (TensorFlow, ``example.proto``, ``feature.proto``):

    Example { Features features = 1; }                Feature { oneof: BytesList 1 | FloatList 2 | Int64List 3 }
    Features { map<string, Feature> feature = 1; }    each list { repeated value = 1 }, numbers packed

Nothing is decoded until it is asked for: a list of a hundred images costs a walk over a hundred lengths. What
TensorFlow does not write (unknown fields, a name twice) is refused and not guessed at.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["bytes", "float", "int64", "empty"]
_KINDS: dict[int, Kind] = {1: "bytes", 2: "float", 3: "int64"}
_LENGTH_DELIMITED = 2
_FIELD_1 = 0x0A  # field 1, length-delimited: what nearly every tag here is
_LONG = 256  # bytes of a list from which looking at it as an array pays


class WireError(ValueError):
    """Bytes that are no Example as TensorFlow writes it. The message says where and what."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One list of a record: ``kind`` and where its bytes lie in ``buffer``."""

    buffer: bytes | memoryview
    kind: Kind
    start: int
    end: int

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of every value of a bytes list, into ``buffer``."""
        self._expect("bytes")
        buffer, position, end = self.buffer, self.start, self.end
        spans = _equal_spans(buffer, position, end)
        if spans:
            return spans
        while position < end:
            if buffer[position] != _FIELD_1 or position + 1 == end:
                raise WireError(f"tag {buffer[position]} at byte {position} of a bytes list, expected {_FIELD_1}")
            # Written out: this loop is what parsing costs. Short strings have lengths of one byte, images of three.
            size, begin = buffer[position + 1], position + 2
            if size > 0x7F:
                size, begin = _varint(buffer, position + 1, end)
            position = begin + size
            if position > end:
                raise WireError(f"a value of {size} bytes at byte {begin} reaches beyond its list")
            spans.append((begin, position))
        return spans

    def bytes_at(self, places: Sequence[int] | np.ndarray | None = None) -> list[bytes]:
        """Values of a bytes list: all, or those at ``places``."""
        spans = self.spans()
        return self.at(spans if places is None else [spans[place] for place in places])

    def at(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes at some of ``spans()``."""
        return [bytes(self.buffer[a:b]) for a, b in spans]

    def floats(self) -> np.ndarray:
        """Values of a float list, float32 [n]; a view where they lie in one piece."""
        self._expect("float")
        blocks = []
        for a, b in self._blocks(5):
            if (b - a) % 4:
                raise WireError(f"{b - a} bytes of floats at byte {a}, expected a multiple of 4")
            blocks.append(np.frombuffer(self.buffer, dtype="<f4", count=(b - a) // 4, offset=a))
        return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks])

    def ints(self) -> np.ndarray:
        """Values of an int64 list, int64 [n]."""
        self._expect("int64")
        blocks = [_varints(np.frombuffer(self.buffer, np.uint8, b - a, a)) for a, b in self._blocks(0)]
        return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.int64), *blocks])

    def count(self) -> int:
        """Number of values."""
        if self.kind == "bytes":
            return len(self.spans())
        return 0 if self.kind == "empty" else len(self.floats() if self.kind == "float" else self.ints())

    def _blocks(self, single: Literal[0, 5]) -> list[tuple[int, int]]:
        """(begin, end) of the numbers: packed blocks, or single values of wire type ``single`` (5: four bytes)."""
        buffer, position, end = self.buffer, self.start, self.end
        blocks = []
        while position < end:
            tag = buffer[position]
            if tag == _FIELD_1:
                size, begin = _varint(buffer, position + 1, end)
                position = begin + size
            elif tag == 8 | single and single:
                begin, position = position + 1, position + 5
            elif tag == 8 | single:
                begin = position + 1
                _, position = _varint(buffer, begin, end)
            else:
                raise WireError(f"tag {tag} at byte {position} of a list of numbers")
            if position > end:
                raise WireError(f"numbers at byte {begin} reach beyond their list")
            blocks.append((begin, position))
        return blocks

    def _expect(self, kind: Kind) -> None:
        # A list without values is written without its kind by some writers.
        if self.kind not in (kind, "empty"):
            raise WireError(f"the list holds {self.kind} values, expected {kind}")


def parse_example(record: bytes | memoryview) -> dict[str, Feature]:
    """The features of a serialized Example by name; they point into ``record``. Raises WireError."""
    features: dict[str, Feature] = {}
    for start, end in _fields(record, 0, len(record), "an Example"):
        for a, b in _fields(record, start, end, "Features"):
            name, feature = _entry(record, a, b)
            if name in features:
                raise WireError(f"feature '{name}' is there twice")
            features[name] = feature
    return features


def serialize_example(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
    """The inverse of ``parse_example``: float32 and int64 arrays [n], or sequences of bytes; names in sorted order."""
    entries = []
    for name in sorted(features):
        values = features[name]
        if isinstance(values, np.ndarray) and values.dtype == np.float32:
            tag, body = 2, _packed(values.astype("<f4", copy=False).tobytes())
        elif isinstance(values, np.ndarray) and values.dtype == np.int64:
            tag, body = 3, _packed(b"".join(_encode_varint(int(v) & (2**64 - 1)) for v in values))
        elif isinstance(values, np.ndarray):
            raise TypeError(f"feature '{name}' is {values.dtype}, expected float32, int64 or a sequence of bytes")
        else:
            tag, body = 1, b"".join(_delimited(1, value) for value in values)
        entries.append(_delimited(1, _delimited(1, name.encode()) + _delimited(2, _delimited(tag, body))))
    return _delimited(1, b"".join(entries))


def _entry(record: bytes | memoryview, start: int, end: int) -> tuple[str, Feature]:
    """One entry of the map: field 1 is the name, field 2 the feature."""
    name: str | None = None
    feature: Feature | None = None
    position = start
    while position < end:
        field, a, position = _field(record, position, end)
        if field == 1 and name is None:
            try:
                name = bytes(record[a:position]).decode()
            except UnicodeDecodeError as error:
                raise WireError(f"the name at byte {a} is no UTF-8") from error
        elif field == 2 and feature is None:
            feature = _feature(record, a, position)
        else:
            raise WireError(f"field {field} at byte {a} of a map entry, expected a name and a feature")
    if name is None or feature is None:
        raise WireError(f"the map entry at byte {start} has no {'name' if name is None else 'feature'}")
    return name, feature


def _feature(record: bytes | memoryview, start: int, end: int) -> Feature:
    if start == end:
        return Feature(record, "empty", start, end)
    field, a, b = _field(record, start, end)
    if b != end or field not in _KINDS:
        raise WireError(f"field {field} at byte {start} of a feature, expected one list of bytes, floats or integers")
    return Feature(record, _KINDS[field], a, b)


def _fields(record: bytes | memoryview, start: int, end: int, what: str) -> list[tuple[int, int]]:
    """Spans of the repeated field 1."""
    spans = []
    position = start
    while position < end:
        field, a, position = _field(record, position, end)
        if field != 1:
            raise WireError(f"field {field} at byte {a} of {what}, expected 1")
        spans.append((a, position))
    return spans


def _field(record: bytes | memoryview, position: int, end: int) -> tuple[int, int, int]:
    """(number, begin, end) of a length-delimited field."""
    tag, position = _varint(record, position, end)
    if tag & 7 != _LENGTH_DELIMITED:
        raise WireError(f"wire type {tag & 7} before byte {position}, expected {_LENGTH_DELIMITED}")
    size, begin = _varint(record, position, end)
    if begin + size > end:
        raise WireError(f"a field of {size} bytes at byte {begin} reaches beyond byte {end}")
    return tag >> 3, begin, begin + size


def _equal_spans(buffer: bytes | memoryview, start: int, end: int) -> list[tuple[int, int]]:
    """Spans of a list whose values have one length below 128, as an instruction at every step; else nothing."""
    if end - start < _LONG or buffer[start] != _FIELD_1 or not 0 < buffer[start + 1] < 0x80:
        return []
    stride = 2 + buffer[start + 1]
    if (end - start) % stride:
        return []
    heads = np.frombuffer(buffer, np.uint8, end - start, start).reshape(-1, stride)[:, :2]
    if not (heads == heads[0]).all():
        return []
    return [(begin, begin + stride - 2) for begin in range(start + 2, end, stride)]


def _varint(buffer: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """(value, next position)."""
    value = shift = 0
    while position < end and shift < 70:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise WireError(f"an integer before byte {position} does not end")


def _varints(raw: np.ndarray) -> np.ndarray:
    """All varints of a uint8 array, int64; flags and small numbers take one byte each and need no work."""
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(last)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    sizes = ends - starts + 1
    if not last[-1] or sizes.max() > 10:
        raise WireError("a list of integers holds one that does not end")
    values = np.zeros(len(ends), dtype=np.uint64)
    for place in range(int(sizes.max())):
        longer = sizes > place
        values[longer] |= (raw[starts[longer] + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
    return values.view(np.int64)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _packed(numbers: bytes) -> bytes:
    """A list of numbers; protobuf leaves an empty one out."""
    return _delimited(1, numbers) if numbers else b""


def _delimited(field: int, payload: bytes) -> bytes:
    return struct.pack("B", field << 3 | _LENGTH_DELIMITED) + _encode_varint(len(payload)) + payload
