"""Changed npy sets: a named error or the right data; never a hang, another exception or, where there are sums, other
numbers. 50 cases a test on every run, 1,000 with ``-m nightly``. Pickled sets: ``test_npy_pickle.py``.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from npy_sets import FORMS, LENGTHS, SIZE, columns
from test_format_fuzz import CASES, assert_right, change_bytes, change_json, everything, run_cases
from written_sets import DESCRIPTION, write_all

from vla_ft.data.formats.npy_writer import NpyWriter
from vla_ft.data.formats.registry import open_dataset
from vla_ft.errors import UserError


@pytest.mark.parametrize("cases", CASES)
def test_what_we_write(tmp_path: Path, cases: range) -> None:
    """Every file of the set, before or after it was opened: sums show whatever the headers do not."""
    writer = NpyWriter(tmp_path / "set", DESCRIPTION)
    write_all(writer)
    origin = writer.finish()
    wanted = everything(open_dataset(origin))

    def one(place: Path, case: int, rng: random.Random) -> str:
        victim = rng.choice(sorted(p for p in place.iterdir() if not p.name.startswith(".")))
        reader = open_dataset(place) if rng.random() < 0.3 else None
        change = change_json if victim.suffix == ".json" else change_bytes
        victim.write_bytes(change(victim.read_bytes(), rng))
        try:
            found = everything(reader or open_dataset(place))
        except UserError as error:
            assert str(error), f"case {case}"
            return "refused"
        assert_right(found, wanted, case)
        return "partly refused" if len(found) < len(wanted) else "harmless"

    counts = run_cases(cases, origin, tmp_path / "case", one)
    print(counts)
    assert counts["refused"] + counts["partly refused"] >= len(cases) // 2


@pytest.mark.parametrize("form", ["files", "npz", "compressed", "raw"])
@pytest.mark.parametrize("cases", CASES)
def test_sets_without_sums(tmp_path: Path, cases: range, form: str) -> None:
    """Foreign sets cannot show changed numbers; whatever is read has the shape and type that was promised."""
    FORMS[form](tmp_path / "set", columns())

    def one(place: Path, case: int, rng: random.Random) -> str:
        victim = rng.choice(sorted(p for p in place.rglob("*") if p.is_file()))
        victim.write_bytes(change_bytes(victim.read_bytes(), rng))
        try:
            reader = open_dataset(place)
            for episode, length in enumerate(reader.lengths):
                keys = ["action", "proprio", *(f"image_{camera}" for camera in reader.description.cameras)]
                read = reader.read(episode, np.arange(length), keys)
                assert all(len(rows) == length for rows in read.values()), f"case {case}"
                assert read["action"].dtype == np.float32
                assert all(rows.dtype == np.uint8 for key, rows in read.items() if key.startswith("image"))
            assert int(reader.lengths.sum()) == sum(LENGTHS)
            assert all(SIZE[0] * SIZE[1] == h * w for h, w in reader.description.cameras.values())
        except UserError as error:
            assert len(str(error)) < 1500, f"case {case}"
            return "refused"
        return "read"

    counts = run_cases(cases, tmp_path / "set", tmp_path / "case", one)
    print(form, counts)
    assert counts["refused"] >= len(cases) // 10
    assert counts["read"] > 0
