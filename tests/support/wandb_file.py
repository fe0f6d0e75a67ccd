"""Reads a W&B transaction log (``run-ID.wandb``): LevelDB's log format around W&B's own protobuf records."""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, OPENING = 32768, 7, 7
"""Bytes of a block, of a record's header (crc32 4, length 2, kind 1), and of the file's own opening (``:W&B``...)."""
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """Every record of the log as W&B's protobuf message."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, joined = OPENING, b""
    while place < len(data):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block too small for a header is padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if kind == 0:  # zeros up to the end of a block
            place += BLOCK - place % BLOCK
            continue
        joined += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(joined)
            yield record
            joined = b""


def history(path: Path) -> list[dict[str, float]]:
    """The logged scalars, line by line, without W&B's own keys."""
    lines = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            lines.append({key: value for key, value in items.items() if not key.startswith("_")})
    return lines


def artifacts(path: Path) -> list[dict[str, Any]]:
    """Name, type, aliases and files (name -> staged copy) of every artifact of the log."""
    return [
        {
            "name": one.name,
            "type": one.type,
            "aliases": list(one.aliases),
            "files": {entry.path: Path(entry.local_path) for entry in one.manifest.contents},
        }
        for record in records(path)
        if record.WhichOneof("record_type") in ("artifact", "request")
        for one in [_artifact_of(record)]
        if one is not None
    ]


def _artifact_of(record: Any) -> Any:
    if record.WhichOneof("record_type") == "artifact":
        return record.artifact
    request = record.request
    return request.log_artifact.artifact if request.WhichOneof("request_type") == "log_artifact" else None


def main() -> None:
    """``python wandb_file.py FILE``: what an offline run would upload, as a listing."""
    path = Path(sys.argv[1])
    kinds = Counter(record.WhichOneof("record_type") for record in records(path))
    lines = history(path)
    print(f"{path.name}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    print(f"history: {len(lines)} lines, steps {lines[0]['step']} to {lines[-1]['step']}")
    for name in sorted({name for line in lines for name in line}):
        values = [line[name] for line in lines if name in line]
        print(f"  {name:<28}{len(values):>4} values, last {values[-1]:.6g}")
    for one in artifacts(path):
        size = sum(file.stat().st_size for file in one["files"].values())
        about = f"{one['name']} ({one['type']}), {', '.join(one['aliases'])}"
        print(f"artifact {about}: {len(one['files'])} files, {size:,} B")


if __name__ == "__main__":
    main()
