"""The files that a LeRobot writer makes besides videos: parquet of steps, and the tables of ``meta``."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vla_ft.data.formats.writing import write_json
from vla_ft.data.sample import DatasetDescription

COUNTERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""The features that every LeRobot dataset has, one number a step."""
_ARROW = {"float32": pa.float32(), "int64": pa.int64()}
_ROWS_PER_BATCH = 8
"""Rows after which the size of a page is looked at; the default of 1,024 makes one page of a whole episode's images."""
_PAGE_BYTES = 1 << 18
_GROUP_BYTES = 32 << 20


def camera_key(camera: str) -> str:
    """The feature of a camera."""
    return f"observation.images.{camera}"


def feature_table(description: DatasetDescription, video: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """``features`` of info.json. ``video``: the ``info`` block by camera, or None for images in parquet."""
    features: dict[str, dict[str, Any]] = {
        "observation.state": _vector(description.proprio_names),
        "action": _vector(description.action_names),
    }
    for camera, (height, width) in description.cameras.items():
        names = ["height", "width", "channels"]
        entry: dict[str, Any] = {"dtype": "image", "shape": [height, width, 3], "names": names}
        features[camera_key(camera)] = entry if video is None else entry | {"dtype": "video", "info": video[camera]}
    return features | {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in COUNTERS.items()}


def schema_of(features: Mapping[str, Mapping[str, Any]], sequence: str) -> pa.Schema:
    """The parquet schema, with the description that the ``datasets`` library reads. ``sequence``: its word for lists,
    ``List`` since datasets 4 (LeRobot 3.0), ``Sequence`` before (2.x)."""
    fields: list[pa.Field] = []
    described: dict[str, Any] = {}
    for name, feature in features.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            fields.append(pa.field(name, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
            described[name] = {"_type": "Image"}
            continue
        kind = _ARROW[feature["dtype"]]
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if name in COUNTERS:
            fields.append(pa.field(name, kind))
            described[name] = value
        else:
            fields.append(pa.field(name, pa.list_(kind, feature["shape"][0])))
            described[name] = {"feature": value, "length": feature["shape"][0], "_type": sequence}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": described}})})


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A parquet writer with small pages and page checksums: images in it are read one by one, and damage is seen."""
    images = [f.name for f in schema if pa.types.is_struct(f.type)]
    return pq.ParquetWriter(
        path,
        schema,
        compression="snappy" if not images else {**_snappy(schema), **{f"{n}.bytes": "NONE" for n in images}},
        use_dictionary=False,
        write_statistics=[f.name for f in schema if not pa.types.is_struct(f.type)],
        write_page_checksum=True,
        data_page_size=_PAGE_BYTES,
        write_batch_size=_ROWS_PER_BATCH if images else 1024,
    )


class StepsFile:
    """The parquet of one episode, written step by step in memory of one row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._writer = open_writer(path, schema)
        self._rows: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._bytes = 0

    def add(self, row: Mapping[str, Any], step: int) -> None:
        """Append a step: numbers, vectors, and pictures uint8 [H, W, 3], which are stored as PNG."""
        for field in self.schema:
            value = row[field.name]
            if pa.types.is_struct(field.type):
                value = {"bytes": _png(value), "path": f"frame_{step:06d}.png"}
                self._bytes += len(value["bytes"])
            elif pa.types.is_fixed_size_list(field.type):
                value = np.asarray(value, np.float32)
                self._bytes += value.nbytes
            self._rows[field.name].append(value)
        if self._bytes > _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the footer."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Close without caring for what is in it."""
        self._writer.close()

    def _flush(self) -> None:
        if self._rows[self.schema.names[0]]:
            arrays = [pa.array(self._rows[f.name], f.type) for f in self.schema]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        self._rows, self._bytes = {name: [] for name in self.schema.names}, 0


def join_steps(sources: Sequence[Path], target: Path, *, schema: pa.Schema) -> None:
    """Concatenate parquet files, a row group at a time."""
    with open_writer(target, schema) as writer:
        for path in sources:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.metadata.num_row_groups):
                    writer.write_table(file.read_row_group(group, use_threads=False).cast(schema))


def write_tasks(tasks: Sequence[str], path: Path) -> None:
    """``tasks.parquet``: a pandas table with the texts as its index, which is how LeRobot 3.0 looks them up."""
    text = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    about = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [number | {"metadata": None}, text | {"metadata": None}],
        "attributes": {},
        "pandas_version": "2.3.3",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], {"pandas": json.dumps(about)})
    columns = [pa.array(range(len(tasks)), pa.int64()), pa.array(list(tasks), pa.string())]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path)


class EpisodesFile:
    """``meta/episodes``: a row an episode, a thousand rows a row group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Append an episode's row."""
        self._rows.append(row)
        if len(self._rows) == 1000:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the footer."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, None if self._writer is None else self._writer.schema)
            self._writer = self._writer or pq.ParquetWriter(self.path, table.schema)
            self._writer.write_table(table)
        self._rows = []


def write_meta(path: Path, value: Any) -> None:
    """Publish a JSON file of ``meta``, its keys in LeRobot's order."""
    write_json(path, value, indent=4, sort_keys=False)


def _vector(names: Sequence[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}


def _snappy(schema: pa.Schema) -> dict[str, str]:
    """Compression by leaf column."""
    leaves = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            leaves[f"{field.name}.path"] = "SNAPPY"
        elif pa.types.is_fixed_size_list(field.type):
            leaves[f"{field.name}.list.element"] = "SNAPPY"
        else:
            leaves[field.name] = "SNAPPY"
    return leaves


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
