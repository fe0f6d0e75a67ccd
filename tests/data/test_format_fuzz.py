"""Changed files of RLDS and npz: a named error or the right data; never a hang, another exception or other numbers.

50 cases a test on every run, 1,000 with ``-m nightly`` (``-s`` prints the outcomes). A case is a number, and a failure
names it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import example_protos
import numpy as np
import pytest
from fuzz_counts import record_counts
from google.protobuf.message import DecodeError
from written_sets import DESCRIPTION, KEYS, write_all

from vla_ft.data.formats import rlds_layouts
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.npz import NpzReader
from vla_ft.data.formats.npz_writer import NpzWriter
from vla_ft.data.formats.rlds import RldsReader
from vla_ft.data.formats.rlds_writer import RldsWriter
from vla_ft.data.formats.tfrecord import frame, scan
from vla_ft.errors import UserError

SECONDS = 20
CASES = [pytest.param(range(50), id="50"), pytest.param(range(1000), id="1000", marks=pytest.mark.nightly)]
Contents = dict[tuple[int, str], object]


@contextmanager
def time_limit(case: int) -> Iterator[None]:
    """A hang fails the case instead of the run."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"case {case} took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything(reader: EpisodeReader) -> Contents:
    """All values of all episodes, feature by feature, twice; what is refused is left out.

    The second time a reader may take another way: RLDS checks a record whole at first and reads pieces afterwards.
    """
    first = everything_once(reader)
    again = everything_once(reader)
    assert first.keys() == again.keys()
    assert_right(again, first, -1)
    return first


def everything_once(reader: EpisodeReader) -> Contents:
    """All values of all episodes; what is refused is left out."""
    found: Contents = {}
    for episode, length in enumerate(reader.lengths):
        for key in KEYS:
            try:
                found[episode, key] = reader.read(episode, np.arange(length), (key,))[key]
            except UserError as error:
                assert str(error)
        try:
            found[episode, "instruction"] = reader.instruction(episode)
        except UserError as error:
            assert str(error)
    return found


def assert_right(found: Contents, wanted: Contents, case: int) -> None:
    """What was read is what was written."""
    for place, value in found.items():
        assert place in wanted, f"case {case}: {place} is new"
        same = np.array_equal(value, wanted[place]) if isinstance(value, np.ndarray) else value == wanted[place]
        assert same, f"case {case}: {place} is other data"


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """One of: flipped bits, other bytes, a cut, a piece removed, a piece doubled, zeros."""
    data = bytearray(content)
    kind = rng.choice(["bit", "bits", "bytes", "cut", "remove", "double", "zeros", "append"])
    place = rng.randrange(len(data))
    piece = slice(place, place + rng.choice([1, 4, 16, 300]))
    if kind == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "bits":
        for _ in range(rng.randint(2, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        data[piece] = rng.randbytes(len(data[piece]))
    elif kind == "cut":
        del data[place:]
    elif kind == "remove":
        del data[piece]
    elif kind == "double":
        data[place:place] = data[piece]
    elif kind == "zeros":
        data[piece] = bytes(len(data[piece]))
    else:
        data += rng.randbytes(rng.choice([1, 16, 100]))
    return bytes(data)


def change_json(content: bytes, rng: random.Random) -> bytes:
    """A value of a JSON file made another, or its bytes changed."""
    if rng.random() < 0.5:
        return change_bytes(content, rng)
    tree = json.loads(content)
    node, parent, key = tree, None, None
    while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.9):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    parent[key] = rng.choice(
        [None, [], {}, -1, 2**70, "", "\0", "../x", True, 1.5, "Tensor", ["1"], {"dimensions": "x"}]
    )
    return json.dumps(tree).encode()


def run_cases(
    cases: range, origin: Path, place: Path, one: Callable[[Path, int, random.Random], str]
) -> dict[str, int]:
    """Run every case on a fresh copy. Returns how often each outcome came."""
    counts: dict[str, int] = {}
    for case in cases:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(origin, place)
        with time_limit(case):
            outcome = one(place, case, random.Random(case))
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


@pytest.fixture(autouse=True)
def every_string_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLDS reads long lists in pieces and short ones whole; these sets are small."""
    monkeypatch.setattr(rlds_layouts, "_READ_WHOLE", 0)


@pytest.fixture(scope="module")
def rlds_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = RldsWriter(tmp_path_factory.mktemp("rlds") / "set", DESCRIPTION, shard_bytes=3000)
    write_all(writer)
    return writer.finish()


@pytest.fixture(scope="module")
def npz_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = NpzWriter(tmp_path_factory.mktemp("npz") / "set", DESCRIPTION)
    write_all(writer)
    return writer.finish()


@pytest.mark.parametrize("cases", CASES)
def test_rlds_shards(rlds_set: Path, tmp_path: Path, cases: range) -> None:
    """Shards that change before or after their index was made: whatever the change, the checksums show it."""
    origin = tmp_path / "origin"
    shutil.copytree(rlds_set, origin)
    wanted = everything(RldsReader(origin))
    (origin / ".index-train.npz").unlink()

    def one(place: Path, case: int, rng: random.Random) -> str:
        indexed = rng.random() < 0.5
        shard = rng.choice(sorted(place.glob("*.tfrecord-*")))
        reader = RldsReader(place) if indexed else None
        before = shard.read_bytes()
        shard.write_bytes(change_bytes(before, rng))
        try:
            found = everything(reader or RldsReader(place))
        except UserError as error:
            assert shard.name in str(error), f"case {case}"
            return "refused"
        assert_right(found, wanted, case)
        # A part that no indexed record touches (a length, a tail) may change without harm; otherwise it is refused.
        return "partly refused" if len(found) < len(wanted) else "harmless"

    counts = run_cases(cases, origin, tmp_path / "case", one)
    record_counts("rlds shards", counts)
    assert counts.get("harmless", 0) <= len(cases) // 3
    assert counts["refused"] >= len(cases) // 4


@pytest.mark.parametrize("cases", CASES)
def test_rlds_records_with_right_checksums(rlds_set: Path, tmp_path: Path, cases: range) -> None:
    """Checksums that fit garbage: what is read is what Google's protobuf reads there."""

    def one(place: Path, case: int, rng: random.Random) -> str:
        shard = place / f"toy_set-train.tfrecord-00000-of-{len(list(place.glob('*.tfrecord-*'))):05d}"
        records = [bytes(payload) for _, payload in scan(shard)]
        records[0] = change_bytes(records[0], rng)
        shard.write_bytes(b"".join(map(frame, records)))
        try:
            lists = example_protos.lists(records[0])
        except DecodeError:
            lists = None  # it decodes all lists; we stop at the one that is asked for
        try:
            reader = RldsReader(place)
        except UserError as error:
            assert shard.name in str(error)
            return "refused"
        read = 0
        for name, spec in reader.features.items():
            try:
                values = reader.raw(0, [name])[name]
            except UserError as error:
                assert f"{shard.name}: record 0 (episode 0)" in str(error), f"case {case}"
                continue
            read += 1
            if lists is None:
                continue
            assert spec.key in lists, f"case {case}: {name} is not there"
            given = lists[spec.key][1]
            given = [one.decode() for one in given] if spec.kind == "text" else given
            flat = values.reshape(-1)
            equal = np.array_equal(flat, np.array(given, dtype=flat.dtype), equal_nan=spec.kind == "number")
            assert equal, f"case {case}: {name} is other data"
        for key in KEYS:
            try:
                reader.read(0, np.arange(reader.lengths[0]), (key,))
            except UserError as error:
                assert shard.name in str(error), f"case {case}"
        return "read" if read == len(reader.features) else "partly refused"

    counts = run_cases(cases, rlds_set, tmp_path / "case", one)
    record_counts("rlds records", counts)
    assert len(counts) >= 2


@pytest.mark.parametrize("cases", CASES)
def test_rlds_descriptions(rlds_set: Path, tmp_path: Path, cases: range) -> None:
    """features.json, dataset_info.json, our own description, the index and the layouts, changed."""
    origin = tmp_path / "origin"
    shutil.copytree(rlds_set, origin)
    wanted = everything(RldsReader(origin))

    def one(place: Path, case: int, rng: random.Random) -> str:
        (layouts,) = place.glob(".layouts-*.bin")
        name = rng.choice(["features.json", "dataset_info.json", "vla_ft.json", ".index-train.npz", layouts.name])
        for shard in place.glob("*.tfrecord-*"):  # the copy's times are new; the index is to be taken
            status = (origin / shard.name).stat()
            os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
        content = (place / name).read_bytes()
        (place / name).write_bytes((change_json if name.endswith(".json") else change_bytes)(content, rng))
        try:
            reader = RldsReader(place, fps=10)
            found = everything(reader)
        except UserError as error:
            assert str(error), f"case {case}"
            return f"{name} refused"
        assert name.endswith((".json", ".npz")) or len(found) == len(wanted), f"case {case}: a cache hides nothing"
        assert reader.lengths.sum() >= 0
        assert_right(found, wanted, case)
        return f"{name} read"

    record_counts("rlds descriptions", run_cases(cases, origin, tmp_path / "case", one))


@pytest.mark.parametrize("cases", CASES)
def test_npz_files(npz_set: Path, tmp_path: Path, cases: range) -> None:
    """Episode files and dataset.json, changed."""
    wanted = everything(NpzReader(npz_set))

    def one(place: Path, case: int, rng: random.Random) -> str:
        victim = rng.choice([*sorted(place.glob("*.npz")), place / "dataset.json"])
        change = change_json if victim.suffix == ".json" else change_bytes
        victim.write_bytes(change(victim.read_bytes(), rng))
        try:
            found = everything(NpzReader(place))
        except UserError as error:
            assert victim.name in str(error) or victim.name == "dataset.json", f"case {case}"
            return "refused"
        assert_right(found, wanted, case)
        return "partly refused" if len(found) < len(wanted) else "harmless"

    counts = run_cases(cases, npz_set, tmp_path / "case", one)
    record_counts("npz", counts)
    assert counts["partly refused"] >= len(cases) // 4
