"""Tensors on disk, a piece at a time: safetensors files written as their tensors come, and read by ranges of elements.

A set of tensors is one file, or above a size several with an index beside them, as model hubs lay them out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_ft.errors import UserError

SHARD_BYTES = 4 * 2**30
"""Above this, a set of tensors is split over several files."""
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """Name, shape and type of a tensor that is going to be written, or can be read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Announced:
    """Tensors whose names, shapes and types are known before any of them is read; iterating reads one at a time."""

    entries: Sequence[Entry]
    read: Callable[[Entry], Tensor]
    """The tensor of an entry, of its type."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((entry.name, self.read(entry)) for entry in self.entries)


def file_names(stem: str, entries: Sequence[Entry], limit: int = SHARD_BYTES) -> list[tuple[str, list[Entry]]]:
    """Which file holds which entries: ``stem.safetensors`` alone, or ``stem-00001-of-0000N.safetensors`` and so on."""
    parts: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if parts[-1] and size + entry.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += entry.nbytes
    if len(parts) == 1:
        return [(f"{stem}.safetensors", parts[0])]
    return [(f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors", part) for i, part in enumerate(parts, 1)]


class TensorWriter:
    """Writes announced tensors in their order, one at a time, so that no more than one has to be in memory."""

    def __init__(
        self, folder: Path, stem: str, entries: Sequence[Entry], limit: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._stem = folder, stem
        self._files = file_names(stem, entries, limit)
        self._pending: Iterator[tuple[str, Entry, bool]] = iter(
            (name, entry, number == 0) for name, part in self._files for number, entry in enumerate(part)
        )
        self._parts = dict(self._files)
        self._metadata = dict(metadata or {})
        self._file: Any = None
        self._left = sum(len(part) for _, part in self._files)

    def begin(self) -> None:
        """Open the first file; of no tensors at all there is one as well."""
        if not self._left:
            self._open(self._files[0][0])

    def write(self, value: Tensor) -> None:
        """Write the next announced tensor; any shape with its number of elements will do."""
        name, entry, first = next(self._pending)
        if value.numel() != entry.numel or value.dtype != entry.dtype:
            raise ValueError(f"{entry} was announced, {value.dtype} with {value.numel()} elements came")
        if first:
            self._open(name)
        self._file.write(_bytes_of(value.detach().cpu().contiguous()))
        self._left -= 1

    def _open(self, name: str) -> None:
        self._close()
        header: dict[str, Any] = {"__metadata__": self._metadata} if self._metadata else {}
        offset = 0
        for entry in self._parts[name]:
            end = offset + entry.nbytes
            header[entry.name] = {
                "dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [offset, end],
            }  # fmt: skip
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
        self._file = (self._folder / name).open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def abandon(self) -> None:
        """Leave what was written as it is: the folder is going to be removed."""
        with contextlib.suppress(OSError):
            self._close()

    def finish(self) -> None:
        """Close the last file and write the index where there are several."""
        self._close()
        if self._left:
            raise ValueError(f"{self._left} announced tensors of {self._stem} were not written")
        if len(self._files) > 1:
            places = {entry.name: name for name, part in self._files for entry in part}
            total = sum(entry.nbytes for _, part in self._files for entry in part)
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (self._folder / f"{self._stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


class TensorReader:
    """Reads ranges of elements of the tensors that ``TensorWriter`` or anyone else laid out so; nothing is mapped.

    Every process opens the files by itself and reads its own elements alone: no process needs memory for more than its
    share, none waits for another, and what two processes of a machine both read comes from the page cache.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        index = folder / f"{stem}.safetensors.index.json"
        names = [f"{stem}.safetensors"]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        self._places: dict[str, tuple[Path, int]] = {}
        self.entries: dict[str, Entry] = {}
        self._stack = ExitStack()
        self._handles: dict[Path, int] = {}
        for name in names:
            self._read_header(folder / name)

    def _read_header(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > path.stat().st_size:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no complete safetensors file ({error}). Copy it again.") from error
        header.pop("__metadata__", None)
        # The order of the bytes, which is the order of writing.
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if about["dtype"] not in _TYPES:
                raise UserError(f"{name} in {path} has type {about['dtype']}. Expected one of {', '.join(_TYPES)}.")
            self.entries[name] = Entry(name, tuple(about["shape"]), _TYPES[about["dtype"]])
            self._places[name] = (path, 8 + length + about["data_offsets"][0])

    @staticmethod
    def exists(folder: Path, stem: str) -> bool:
        """Whether the folder holds this set of tensors."""
        return any((folder / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json"))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def range(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor, on the CPU."""
        entry = self.entries[name]
        path, offset = self._places[name]
        size = entry.dtype.itemsize
        buffer = bytearray((stop - start) * size)
        with memoryview(buffer) as view:
            done = 0
            while done < len(buffer):
                count = os.preadv(self._handle(path), [view[done:]], offset + start * size + done)
                if count == 0:
                    raise UserError(f"{path} ends before the tensor '{name}' does. Copy it again.")
                done += count
        if not buffer:
            return torch.empty(0, dtype=entry.dtype)
        return torch.frombuffer(buffer, dtype=entry.dtype)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its shape, on the CPU."""
        entry = self.entries[name]
        return self.range(name, 0, entry.numel).view(entry.shape)

    def _handle(self, path: Path) -> int:
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDONLY)
            self._stack.callback(os.close, self._handles[path])
        return self._handles[path]

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._handles.clear()


def _bytes_of(value: Tensor) -> memoryview:
    return memoryview(value.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
