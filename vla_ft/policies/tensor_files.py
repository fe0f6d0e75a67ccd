"""The one place where files of foreign tensors are opened: safetensors, or torch files without code in them.

Nothing is read but names, shapes and types: the tensors are parts of the mapped file, so that opening 30 GB costs no
memory and copying one tensor reads one tensor.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vla_ft.checkpoints import MANIFEST
from vla_ft.errors import UserError
from vla_ft.policies.mapped_file import MappedFile, last_byte

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""The list of a folder of shards: ``{"weight_map": {tensor: file}}``."""
WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
LEGACY_LIMIT = 4 * 1024**3
"""Torch files from before version 1.6 cannot be mapped; above this many bytes they are not read into memory either."""
_HEADER_LIMIT = 100_000_000
"""What the safetensors library allows for a header."""
_SAFETENSORS_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a mapped file."""

    file: MappedFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte of its storage."""
    stride: tuple[int, ...] | None = None
    skip: int = 0
    """Elements of its storage before it."""

    def tensor(self) -> Tensor:
        """The tensor itself; its numbers are read when they are used."""
        return self.file.tensor(self.dtype, self.shape, start=self.start, stride=self.stride, skip=self.skip)

    @property
    def end(self) -> int:
        """The byte after its last."""
        return last_byte(self.dtype, self.shape, start=self.start, stride=self.stride, skip=self.skip)


class TensorFiles(Mapping[str, Tensor]):
    """Tensors of one file or of a folder of shards by name, made when they are asked for.

    Writing to one changes this process's copy alone, never the file.
    """

    def __init__(
        self, source: str, entries: Mapping[str, Stored | Tensor], beside: Mapping[str, object] | None = None
    ) -> None:
        self.source = source
        self._entries = dict(entries)
        self.beside = dict(beside or {})
        """What lies beside the tensors: a safetensors file's metadata, or plain values at the top of a torch file."""

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry if isinstance(entry, Tensor) else entry.tensor()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def joined(self, other: TensorFiles, prefix: str) -> TensorFiles:
        """Both sets, the other's names behind ``prefix``."""
        behind = {prefix + name: entry for name, entry in other._entries.items()}
        source = f"{self.source} and {other.source}" if self._entries else other.source
        return TensorFiles(source, {**self._entries, **behind})

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; nothing of it is read."""
        return tuple(self._entries[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type; nothing of it is read."""
        return self._entries[name].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in self._entries.values())


def open_tensors(path: str | Path, inside: str | None = None) -> TensorFiles:
    """Tensors by name, on the CPU, mapped: of a file, or of a folder with an index of shards.

    ``inside`` names the part of a nested torch file (``model``; ``model.action_model``) whose tensors are meant; parts
    below it are joined to the names with dots. Without it the file must be a plain state dict. Torch files are read
    with ``weights_only=True``: a pickle could run any program. Raises UserError when something is missing, damaged, or
    holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, inside)
    if not path.is_file():
        raise UserError(f"No weights file at {path}. Give the path of a .safetensors, .pt, .pth or .ckpt file.")
    if path.suffix == ".safetensors":
        if inside is not None:
            raise UserError(f"{path} is a flat safetensors file; there is no part '{inside}' in it.")
        return TensorFiles(str(path), *_safetensors_entries(path))
    if path.suffix in TORCH_SUFFIXES:
        return TensorFiles(str(path), *_torch_entries(path, inside))
    raise UserError(f"{path} ends in '{path.suffix}'; expected .safetensors or one of {', '.join(TORCH_SUFFIXES)}.")


def read_tensors(path: str | Path, inside: str | None = None) -> dict[str, Tensor]:
    """``open_tensors`` with every tensor copied into memory."""
    return {name: tensor.clone() for name, tensor in open_tensors(path, inside).items()}


def read_torch_object(path: Path) -> Any:
    """What a torch file of plain values (tensors, text, containers) holds. Raises UserError; no code is run."""
    if not path.is_file():
        raise UserError(f"No file at {path}. Check the path.")
    return _unpickle(path, shapes_only=False)


def _of_a_run(folder: Path) -> str:
    """What to do with the folder of a run, or of one of its checkpoints; nothing for any other."""
    if not (folder / "checkpoints").is_dir() and not (folder / MANIFEST).is_file():
        return ""
    return (
        f" It is of a run of ours: `vla-ft export checkpoint={folder} output=weights.safetensors` makes one file of "
        "its weights, to start from. To continue the run itself, say its recipe and output= again."
    )


def _open_folder(folder: Path, inside: str | None) -> TensorFiles:
    index = next((folder / name for name in INDEX_FILES if (folder / name).is_file()), None)
    if index is None:
        whole = next((folder / name for name in WHOLE_FILES if (folder / name).is_file()), None)
        if whole is None:
            names = ", ".join((*INDEX_FILES, *WHOLE_FILES))
            raise UserError(f"No weights in folder {folder}: it has none of {names}.{_of_a_run(folder)}")
        return open_tensors(whole, inside)
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of shards ({error!r}). Copy or download it again.") from error
    shards: dict[str, TensorFiles] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise UserError(f"{index} names the file '{shard}' outside its folder. It was not read.")
        if not (folder / shard).is_file():
            raise UserError(f"{folder} lacks {shard}, which {index.name} lists. Copy or download it again.")
        shards[shard] = open_tensors(folder / shard, inside)
    lost = [f"'{name}' in {shard}" for name, shard in places.items() if name not in shards[shard]]
    if lost:
        raise UserError(f"{index} lists tensors that are not there: {', '.join(lost[:4])}. Download the folder again.")
    beside = {key: value for shard in shards.values() for key, value in shard.beside.items()}
    return TensorFiles(str(folder), {name: shards[shard]._entries[name] for name, shard in places.items()}, beside)


def _safetensors_entries(path: Path) -> tuple[dict[str, Stored], dict[str, object]]:
    """The header of a safetensors file: 8 bytes of length, JSON, data. Raises UserError unless it fits the file."""
    try:
        file = MappedFile(path)
        (length,) = struct.unpack("<Q", file.read(0, 8))
        if length > min(_HEADER_LIMIT, file.size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {file.size}")
        header = json.loads(file.read(8, length))
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = {name: _stored(file, 8 + length, **about) for name, about in header.items()}
        end = max((entry.end for entry in entries.values()), default=8 + length)
        if end != file.size:
            raise ValueError(f"{file.size} bytes, the header describes {end}")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path} is no complete safetensors file ({error}). Copy or download it again.") from error
    return entries, metadata


def _stored(file: MappedFile, data: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    begin, end = data_offsets
    if dtype not in _SAFETENSORS_TYPES:
        raise ValueError(f"numbers of type {dtype}, which is not known here")
    kind = _SAFETENSORS_TYPES[dtype]
    if begin < 0 or end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{end - begin} bytes for {dtype} {shape}")
    return Stored(file, kind, tuple(shape), start=data + begin)


def _torch_entries(path: Path, inside: str | None) -> tuple[dict[str, Stored | Tensor], dict[str, object]]:
    mapped = zipfile.is_zipfile(path)
    if mapped:
        _refuse_program(path)
    if not mapped and path.stat().st_size > LEGACY_LIMIT:
        raise UserError(
            f"{path} has the form of torch before 1.6, which must be read whole: {path.stat().st_size / 1e9:.1f} GB. "
            "Save it again with a newer torch: torch.save(torch.load(FILE, weights_only=True), NEW)."
        )
    content = _unpickle(path, shapes_only=mapped)
    tensors = _tensors_of(content, inside, path)
    beside = {} if inside is None else {key: value for key, value in content.items() if _is_plain(value)}
    if not mapped:
        return dict(tensors), beside
    file = MappedFile(path)
    entries = {name: _stored_in_zip(file, tensor) for name, tensor in tensors.items()}
    if any(entry.end > file.size for entry in entries.values()):
        raise UserError(f"{path} is no complete torch file (tensors reach past its end). Copy or download it again.")
    return dict(entries), beside


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a flat dict of those."""
    values = value.values() if isinstance(value, dict) else (value,)
    return all(isinstance(one, bool | int | float | str) for one in values)


def _refuse_program(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return
    raise UserError(
        f"{path} is a TorchScript archive, a program with weights (OpenAI publishes CLIP so); it was not read. "
        'If you trust it, save its weights once: python -c "import torch; torch.save(torch.jit.load('
        f"'{path}', map_location='cpu').state_dict(), '{path.with_suffix('')}-weights.pt')\""
    )


def _unpickle(path: Path, shapes_only: bool) -> Any:
    """What ``torch.load`` gives; ``shapes_only`` leaves the numbers in the file and notes where they lie."""
    try:
        if not shapes_only:
            return torch.load(path, map_location="cpu", weights_only=True)
        with FakeTensorMode():
            return torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no torch file, or holds Python objects beside tensors, which loading could execute; it was "
            "not read. Save the state dict alone: torch.save(model.state_dict(), ...)."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no complete torch file ({error}). Copy or download it again.") from error


def _stored_in_zip(file: MappedFile, tensor: Tensor) -> Stored:
    # torch writes storages into its zip files uncompressed, and a load of shapes alone notes the offset of each.
    start = tensor.untyped_storage()._checkpoint_offset
    assert start is not None
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    return Stored(file, tensor.dtype, shape, start=start, stride=stride, skip=int(tensor.storage_offset()))


def _tensors_of(content: Any, inside: str | None, path: Path) -> dict[str, Tensor]:
    """The tensors of the wanted part of a torch file, flat. Raises UserError on anything else in it."""
    if inside is None:
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise UserError(f"{path} holds {_seen(content)}, expected a plain state dict (name -> tensor).")
        return content
    for step in inside.split("."):
        if not isinstance(content, dict) or step not in content:
            raise UserError(f"{path} holds {_seen(content)}, expected a part '{inside}' of tensors.")
        content = content[step]
    flat = dict(_flatten(content, ""))
    strange = [name for name, value in flat.items() if not isinstance(value, Tensor)]
    if strange or not flat:
        raise UserError(f"{path} holds {strange[:4] or 'nothing'} in its part '{inside}', expected tensors alone.")
    return flat


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flatten(part, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def _seen(content: Any) -> str:
    return f"a dict with {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else str(type(content))
