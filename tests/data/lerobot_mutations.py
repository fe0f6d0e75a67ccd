"""Damages a LeRobot dataset at random and says what its reader made of it. A script, because a decoder may crash.

    python lerobot_mutations.py FOLDER FIRST COUNT    # prints a JSON line a case

``FOLDER`` holds a set of each kind (``write_kinds``). A case is ``right`` (all as written), ``named`` (a UserError),
``pixels`` (numbers right, frames of a damaged video differ: no decoder can tell) or ``wrong``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot_sets import KEYS, KINDS, LENGTHS, arrays_of, describe, write_set

from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.statistics import check_finite
from vla_ft.errors import UserError

VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    3,
    10**12,
    1e300,
    "",
    "x",
    "v2.0",
    "v3.0",
    "../{x}",
    [],
    {},
    [0],
    True,
    [1, 2, 3],
)


def write_kinds(folder: Path) -> None:
    """One set of each version and kind of images."""
    for version, images in KINDS:
        write_set(folder / f"{version}_{images}", version, images)


def mutate(path: Path, rng: np.random.Generator) -> str:
    """Damage one file of a dataset; returns which and how."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    file = files[int(rng.integers(len(files)))]
    ways = {".json": ["field"] * 4, ".parquet": ["rows", "number"], ".jsonl": ["line"]}.get(file.suffix, [])
    way = str(rng.choice([*ways, "flip", "flip", "truncate", "remove", "zeros"]))
    raw = bytearray(file.read_bytes())
    if way == "flip":
        for _ in range(int(rng.integers(1, 4))):
            raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    elif way == "truncate":
        del raw[int(rng.integers(len(raw))) :]
    elif way == "zeros":
        start = int(rng.integers(len(raw)))
        end = min(len(raw), start + int(rng.integers(1, 200)))
        raw[start:end] = bytes(end - start)
    if way == "remove":
        file.unlink()
    elif way == "field":
        _change_field(file, rng)
    elif way in ("rows", "number"):
        _change_table(file, rng, way)
    elif way == "line":
        lines = file.read_text().splitlines()
        del lines[int(rng.integers(len(lines)))]
        file.write_text("\n".join(lines))
    else:
        file.write_bytes(raw)
    return f"{way} {file.relative_to(path)}"


def _change_field(file: Path, rng: np.random.Generator) -> None:
    content = json.loads(file.read_text())
    parent, key = content, ""
    for _ in range(int(rng.integers(1, 4))):
        if isinstance(parent.get(key) if key else parent, dict) and (parent[key] if key else parent):
            parent = parent[key] if key else parent
            key = str(rng.choice(sorted(parent)))
    if rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = VALUES[int(rng.integers(len(VALUES)))]
    file.write_text(json.dumps(content))


def _change_table(file: Path, rng: np.random.Generator, way: str) -> None:
    table = pq.read_table(file)
    if way == "rows":
        keep = rng.random(len(table)) < 0.8
        pq.write_table(table.filter(pa.array(keep)), file)
        return
    numbers = [n for n, f in enumerate(table.schema) if pa.types.is_integer(f.type)]
    place = int(rng.choice(numbers))
    values = table.column(place).to_pylist()
    if values:
        values[int(rng.integers(len(values)))] = [None, -1, 1, 2**40][int(rng.integers(4))]
    changed = pa.array(values, table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), changed), file)


def judge(path: Path, cache: Path, harm: str, truths: list[dict[str, np.ndarray]]) -> tuple[str, str]:
    """What the reader makes of a damaged dataset: (verdict, message)."""
    verdicts = {"right"}
    message = ""
    try:
        reader = open_dataset(path, cache=cache)
        if set(reader.description.cameras) != {"front", "wrist"} or len(reader.lengths) != len(LENGTHS):
            return "wrong", f"{reader.description.cameras} {reader.lengths}"
        if reader.description.fps != 10:
            return "wrong", f"fps {reader.description.fps}"
    except UserError as error:
        return "named", str(error)
    for episode, truth in enumerate(truths):
        try:
            check_finite(reader, [episode])
            read = reader.read(episode, np.arange(reader.lengths[episode]), KEYS)
            assert isinstance(reader.instruction(episode), str)
        except UserError as error:
            verdicts.add("named")
            message = str(error)
            continue
        for key, values in truth.items():
            same = read[key].shape == values.shape and np.array_equal(read[key], values)
            if not same and read[key].shape == values.shape and harm.endswith(".mp4") and key.startswith("image"):
                verdicts.add("pixels")
            elif not same:
                return "wrong", f"{key} of episode {episode} differs"
    return next(v for v in ("named", "pixels", "right") if v in verdicts), message


def main(folder: Path, first: int, count: int) -> None:
    """Print a line a case."""
    truths = {}
    for version, images in KINDS:
        reader = open_dataset(folder / f"{version}_{images}", cache=folder / "cache")
        truths[version, images] = [reader.read(e, np.arange(n), KEYS) for e, n in enumerate(LENGTHS)]
        written = arrays_of(0, LENGTHS[0], describe())
        assert np.array_equal(truths[version, images][0]["action"], written["action"])
    for case in range(first, first + count):
        rng = np.random.default_rng([7, case])
        kind = KINDS[case % len(KINDS)]
        path = Path(shutil.copytree(folder / "_".join(kind), folder / f"case_{case}"))
        harm = mutate(path, rng)
        print(json.dumps({"case": case, "kind": "_".join(kind), "harm": harm}), flush=True)
        verdict, message = judge(path, folder / "cases", harm, truths[kind])
        print(json.dumps({"case": case, "verdict": verdict, "message": message}), flush=True)
        shutil.rmtree(path)
        shutil.rmtree(folder / "cases", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
