"""Rows of named tensors in safetensors shards: what a frozen part of a model yields for every step of a dataset.

A folder holds ``key.json`` (what the rows were computed from, and their layout; written first), one file a shard
(written beside and renamed) and ``manifest.json`` (a hash of every shard; written last). A kill leaves whole shards,
and the work goes on with the missing ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vla_ft.checkpoints import describe
from vla_ft.data.formats.writing import sync
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError

FORMAT = 1
KEY = "key.json"
MANIFEST = "manifest.json"
_INCOMING = ".incoming-"
_OPEN_SHARDS = 256


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One named tensor of a row: its shape, and the dtype that it has on disk and in batches."""

    shape: tuple[int, ...]
    stored: torch.dtype
    computed: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of one row on disk."""
        return math.prod(self.shape) * self.stored.itemsize

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"shape": list(self.shape), "stored": _name(self.stored), "computed": _name(self.computed)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Feature:
        """Inverse of ``to_json``."""
        return cls(
            shape=tuple(data["shape"]),
            stored=getattr(torch, data["stored"]),
            computed=getattr(torch, data["computed"]),
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How rows lie in shards. ``batch`` rows are computed together; a shard holds whole batches, but for the last."""

    rows: int
    batch: int
    rows_per_shard: int
    per_frame: bool
    """Whether a row belongs to one frame, so that a window reads several."""
    features: dict[str, Feature]

    @classmethod
    def plan(cls, rows: int, batch: int, shard_bytes: float, per_frame: bool, features: dict[str, Feature]) -> Layout:
        """Shards of about ``shard_bytes``."""
        fitting = max(1, round(shard_bytes / sum(f.bytes for f in features.values()) / batch))
        return cls(rows=rows, batch=batch, rows_per_shard=fitting * batch, per_frame=per_frame, features=dict(features))

    @property
    def bytes(self) -> int:
        """Bytes of all rows on disk, without the shards' headers."""
        return self.rows * sum(feature.bytes for feature in self.features.values())

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> range:
        """Row numbers of a shard."""
        return range(shard * self.rows_per_shard, min(self.rows, (shard + 1) * self.rows_per_shard))

    def batches_of(self, shard: int) -> list[list[int]]:
        """Row numbers computed together. A short last batch is filled up with its last row: some convolution kernels
        round differently for another batch size."""
        rows = self.rows_of(shard)
        batches = [list(rows[start : start + self.batch]) for start in range(0, len(rows), self.batch)]
        return [batch + [batch[-1]] * (self.batch - len(batch)) for batch in batches]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        numbers = {name: getattr(self, name) for name in ("rows", "batch", "rows_per_shard", "per_frame")}
        return numbers | {"features": {name: feature.to_json() for name, feature in self.features.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Inverse of ``to_json``."""
        features = {name: Feature.from_json(feature) for name, feature in data["features"].items()}
        return cls(**{**data, "features": features})


class FeatureFolder:
    """The files of one part's features: writing, finding out what is there, and checking it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shard(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"shard_{number:05d}.safetensors"

    def incoming(self, number: int) -> Path:
        """Where a shard is written before it gets its name."""
        return self.folder / f"{_INCOMING}{self.shard(number).name}"

    def begun(self) -> tuple[dict[str, Any], Layout] | None:
        """Key and layout of what lies here, finished or not; None for an empty place. Raises UserError."""
        return self._read(KEY)

    def finished(self) -> bool:
        """Whether every shard is there and listed."""
        return (self.folder / MANIFEST).is_file()

    def begin(self, key: Mapping[str, Any], layout: Layout) -> None:
        """Write down what the shards will hold. Raises UserError when they cannot fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        if layout.bytes > free:
            raise UserError(
                f"The features need {layout.bytes:,} bytes ({layout.rows:,} rows of {layout.bytes // layout.rows:,}) "
                f"and {self.folder} has {free:,} free. Set frozen_features.path to a larger disk, store them in fewer "
                "bytes (frozen_features.dtype=bfloat16, which rounds them), or set frozen_features=null."
            )
        _replace(self.folder / KEY, json.dumps({"format": FORMAT, "key": key, "layout": layout.to_json()}, indent=1))

    def missing(self, layout: Layout) -> list[int]:
        """Shards that are not there yet. One that has its name is whole."""
        return [number for number in range(layout.shards) if not self.shard(number).is_file()]

    def write(self, number: int, rows: Mapping[str, Tensor]) -> None:
        """Put one shard in place: ``rows`` [n, ...] by feature. Raises OSError."""
        incoming = self.incoming(number)
        # In memory first: the library's own writer hides the system's error number in a text.
        with incoming.open("wb") as file:
            file.write(save(dict(rows)))
            file.flush()
            os.fsync(file.fileno())
        incoming.rename(self.shard(number))
        sync(self.folder)

    def describe(self, number: int) -> dict[str, Any]:
        """Size and hash of a shard."""
        return describe(self.shard(number))

    def finish(self, shards: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the manifest: what ``describe`` said of each shard, by file name."""
        _replace(self.folder / MANIFEST, json.dumps({"format": FORMAT, "files": shards}, indent=1))

    def check(self, number: int) -> str | None:
        """What is wrong with a shard, in words; None when it is as its manifest says."""
        path = self.shard(number)
        expected = json.loads((self.folder / MANIFEST).read_text())["files"][path.name]
        seen = describe(path) if path.is_file() else "missing"
        if seen == expected:
            return None
        return (
            f"Cached features are damaged: {path} is {seen}, its manifest says {expected}. Delete {self.folder}, and "
            "they are computed again."
        )

    def sweep(self) -> None:
        """Remove what a killed writer left. Only its next writer, who holds the folder, may call this."""
        for path in self.folder.glob(f"{_INCOMING}*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def sole_writer(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with it, however it ends. Raises UserError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            os.register_at_fork(after_in_child=lock.close)  # a data worker would keep it alive for seconds after a kill
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"Another process computes the features in {self.folder}. Wait for it, or choose another "
                    "frozen_features.path."
                ) from None
            yield

    def _read(self, name: str) -> tuple[dict[str, Any], Layout] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise UserError(
                    f"{path} has format {data['format']}, this version reads {FORMAT}. Delete {self.folder}, and the "
                    "features are computed again."
                )
            return data["key"], Layout.from_json(data["layout"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}: {error}). Delete {self.folder}, and the features are "
                "computed again."
            ) from error


class FeatureStore:
    """Random access to finished rows. Shards are memory-mapped, so a row is read without its shard, and processes share
    the pages. Pickling carries no maps; forked workers may use their parent's."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = FeatureFolder(folder), layout
        self._shards: OrderedDict[int, Any] = OrderedDict()

    def read(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Features [n, ...] of row numbers, in the dtype that they were computed in. Raises UserError on damage."""
        out = {
            name: torch.empty(len(rows), *feature.shape, dtype=feature.computed)
            for name, feature in self.layout.features.items()
        }
        for place, row in enumerate(int(row) for row in rows):
            number, within = divmod(row, self.layout.rows_per_shard)
            try:
                slices = self._open(number)
                for name, values in out.items():
                    values[place].copy_(slices[name][within].reshape(values[place].shape))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"Cached features are damaged: {self.folder.shard(number)} cannot be read ({error}). Delete "
                    f"{self.folder.folder}, and they are computed again."
                ) from error
        return out

    def _open(self, number: int) -> dict[str, Any]:
        """Slices of a shard by feature."""
        if number not in self._shards:
            while len(self._shards) >= _OPEN_SHARDS:
                self._shards.popitem(last=False)
            file = safe_open(self.folder.shard(number), framework="pt")
            self._shards[number] = {name: file.get_slice(name) for name in self.layout.features}
        self._shards.move_to_end(number)
        return self._shards[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict()}


class CachedFeatures:
    """Features of samples, from the stores of one or more parts, for a policy's observation window."""

    def __init__(self, stores: Sequence[FeatureStore], lengths: np.ndarray, window: WindowSpec) -> None:
        self.stores = list(stores)
        self.steps = window.observation_steps
        self.first = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)[:-1]))
        """Row of each episode's first step: rows are all steps of all episodes, in the reader's order."""

    def read(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Features of samples (episode, step): [B, T, ...] where they are per frame, the window oldest first and its
        steps before the episode repeating the first frame; [B, ...] otherwise."""
        episodes, steps = np.asarray(places, dtype=np.int64).reshape(-1, 2).T
        batch: dict[str, Tensor] = {}
        for store in self.stores:
            if not store.layout.per_frame:
                batch |= store.read(self.first[episodes] + steps)
                continue
            seen = np.maximum(steps[:, None] + np.arange(1 - self.steps, 1), 0)
            rows = store.read((self.first[episodes][:, None] + seen).reshape(-1))
            batch |= {name: values.unflatten(0, seen.shape) for name, values in rows.items()}
        return batch


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _replace(path: Path, text: str) -> None:
    """Put a small text file in place in one step that survives a crash."""
    temporary = path.with_name(f"{_INCOMING}{path.name}")
    temporary.write_text(text)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)
