"""Hostile pickles behind the name of ``observations.npy``: refused by name, nothing executed, no memory taken."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npy_sets import columns, dicts, observed, write_numbers
from test_format_fuzz import CASES, change_bytes, time_limit

from vla_ft.data.formats.npy_files import NpyError
from vla_ft.data.formats.npy_pickle import PickledArray, observation_dicts, read_pickle
from vla_ft.data.formats.registry import open_dataset
from vla_ft.errors import UserError

PROTOCOL = b"\x80\x04"


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Plain:
    """An object with attributes."""

    def __init__(self) -> None:
        self.a = 1


def loaded(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data), len(data))


def unwrapped(value: Any) -> Any:
    """Arrays of a pickle as arrays."""
    if isinstance(value, PickledArray):
        flat = [unwrapped(v) for v in value.values] if value.objects else value.values
        return (value.shape, flat)
    if isinstance(value, dict):
        return {key: unwrapped(v) for key, v in value.items()}
    return [unwrapped(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_numpy_pickles_comes_back(protocol: int) -> None:
    values = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "big": np.arange(5, dtype=">f8"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "number": np.float32(2.5),
        "plain": [1, -70000, 2**40, 1.5, None, True, False, "größe", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}],
        "bool": np.array([True, False]),
    }
    if protocol == 2:  # it holds bytes as a call of _codecs.encode, which is refused as any call is
        with pytest.raises(NpyError, match=r"asks for _codecs\.encode"):
            loaded(pickle.dumps(values, 2))
        return
    found = loaded(pickle.dumps(values, protocol))
    assert found["plain"] == values["plain"]
    assert found["number"] == values["number"]
    for name in ("image", "big", "fortran", "bool"):
        assert found[name].values.dtype == values[name].dtype
        assert np.array_equal(found[name].values, values[name])


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize("layout", ["dicts", "arrays"])
def test_both_homes_of_numpys_constructor(core: bytes, layout: str) -> None:
    """NumPy 1 pickles ``numpy.core``, NumPy 2 ``numpy._core``; either reads either, and so must we."""
    values = columns()
    array = dicts(values) if layout == "dicts" else np.array(observed(values), dtype=object)
    data = pickle.dumps(array, protocol=3)
    assert b"numpy._core.multiarray" in data
    content = observation_dicts(loaded(data.replace(b"numpy._core.multiarray", core)))
    state = content["state"].values if isinstance(content, dict) else np.stack([s["state"].values for s in content])
    assert np.array_equal(state, values["state"])


def nested(value: Any) -> np.ndarray:
    """An array of dicts whose ``state`` is ``value``."""
    array = np.empty(1, dtype=object)
    array[0] = {"image_left": np.zeros((2, 2, 3), np.uint8), "state": value}
    return array


GADGETS: dict[str, tuple[Any, str]] = {
    "os.system": (Calls(os.system, "touch {marker}"), r"asks for posix\.system"),
    "eval": (Calls(eval, "open({marker!r}, 'w')"), r"asks for builtins\.eval"),
    "exec": (Calls(exec, "open({marker!r}, 'w')"), r"asks for builtins\.exec"),
    "open": (Calls(open, "{marker}", "w"), r"asks for (_io|io)\.open"),
    "getattr": (Calls(getattr, Calls(__import__, "os"), "system"), r"asks for builtins\.getattr"),
    "subprocess": (Calls(subprocess.Popen, ["touch", "{marker}"]), r"asks for subprocess\.Popen"),
    "numpy": (Calls(np.load, "{marker}"), r"asks for numpy\.load"),
    "object": (Plain(), r"asks for test_npy_pickle\.Plain"),
    "bytearray": (bytearray(b"abc"), r"asks for builtins\.bytearray"),
    "set": ({1, 2}, "uses EMPTY_SET"),
    "complex": (1j, r"asks for builtins\.complex"),
    "times": (np.array(["2020"], "M8[D]"), "of dtype 'M8'"),
    "text": (np.array(["abc"]), "of dtype 'U3'"),
    "records": (np.zeros(2, [("a", "f4")]), "of dtype 'V4'"),
    "masked": (np.ma.masked_array([1.0], [True]), r"asks for numpy\.ma\.core\._mareconstruct"),
}


def filled(value: Any, marker: str) -> Any:
    """A gadget with the path in it."""
    if isinstance(value, Calls):
        function, arguments = value.call
        return Calls(function, *(filled(a, marker) for a in arguments))
    if isinstance(value, list):
        return [filled(v, marker) for v in value]
    return value.format(marker=marker) if isinstance(value, str) else value


@pytest.mark.parametrize("place", ["alone", "in an array of dicts", "in a dict of arrays"])
@pytest.mark.parametrize("kind", GADGETS)
def test_gadgets_are_refused_by_name_and_not_run(tmp_path: Path, kind: str, place: str) -> None:
    value, message = GADGETS[kind]
    marker = tmp_path / "executed"
    gadget = filled(value, str(marker))
    write_numbers(tmp_path / "set", {"action": np.zeros((1, 14), np.float32)}, (1,))
    with (tmp_path / "set" / "observations.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        whole = {"alone": gadget, "in an array of dicts": nested(gadget)}
        pickle.dump(whole.get(place, np.array({"state": gadget}, dtype=object)), file, protocol=4)
    with pytest.raises(UserError, match=rf"^Invalid observation format: .*{message}"):
        open_dataset(tmp_path / "set", allow_pickle=True)
    assert not marker.exists()


def test_object_arrays_in_object_arrays_are_data_without_use(tmp_path: Path) -> None:
    inner = np.empty(2, dtype=object)
    inner[:] = [np.zeros(3), nested(np.zeros(2))]
    write_numbers(tmp_path / "set", {"action": np.zeros((1, 14), np.float32)}, (1,))
    np.save(tmp_path / "set" / "observations.npy", nested(inner), allow_pickle=True)
    with pytest.raises(UserError, match=r"step 0: 'state' is an array of objects \(2,\), expected an array of numbers"):
        open_dataset(tmp_path / "set", allow_pickle=True)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1\x89\x88tR"
HUGE = (1 << 39).to_bytes(8, "little")
BAD: dict[str, tuple[bytes, str]] = {
    "bytes that are not there": (b"\x8e" + HUGE + b"x.", "asks for 549755813888 bytes where 2 are left"),
    "text that is not there": (b"\x8d" + HUGE + b"x.", "asks for 549755813888 bytes where"),
    "a long that is not there": (b"\x8b" + (1 << 30).to_bytes(4, "little") + b"x.", "asks for 1073741824 bytes"),
    "a far place in the memo": (b"Nr" + b"\xff\xff\xff\x7f.", ""),
    "a far frame": (b"\x95" + HUGE + b"N.", ""),
    "an array made large": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n\x8a\x06" + HUGE[:6] + b"\x85C\x01btR.",
        "is not made as NumPy makes them",
    ),
    "a shape without numbers": (
        ARRAY + b"(K\x01\x8a\x06" + HUGE[:6] + b"\x85" + DTYPE + b"\x89C\x01atb.",
        "an array of impossible shape|numbers with 1 bytes",
    ),
    "a negative shape": (ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89C\x01atb.", "impossible shape"),
    "numbers that are no bytes": (ARRAY + b"(K\x01K\x01\x85" + DTYPE + b"\x89K\x07tb.", "damaged"),
    "another class": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00\x85C\x01btR.", "is not made as NumPy makes them",
    ),
    "a type called": (b"cnumpy\nndarray\nK\x01\x85R.", "in a way that no array needs"),
    "text called": (b"X\x01\x00\x00\x00a)R.", "calls what is no constructor"),
    "attributes of a constructor": (
        b"cnumpy.core.multiarray\n_reconstruct\n(NNtb.", "sets the state of something that is no array",
    ),
    "attributes of a dict": (b"}}X\x01\x00\x00\x00aK\x01sb.", "sets attributes of an object"),
    "a new object": (b"cnumpy\nndarray\n)\x81.", "uses NEWOBJ"),
    "an instance": (b"(inumpy\nndarray\n.", "uses INST"),
    "a persistent name": (b"Pname\n.", "uses PERSID"),
    "an extension": (b"\x82\x01.", "uses EXT1"),
    "the stack doubled": (b"N2.", "uses DUP"),
    "nothing": (b".", "damaged"),
    "no end": (b"N", "damaged|no end"),
    "a mark alone": (b"(.", "damaged"),
    "a memo that is empty": (b"h\x05.", "damaged"),
    "items without a dict": (b"NK\x01K\x02s.", "damaged"),
    "half an item": (b"}(K\x01u.", "keys that are no text"),
    "keys that are numbers": (b"}K\x01K\x02s.", "keys that are no text"),
    "a name without end": (b"c" + b"a" * 5000, "damaged"),
    "a name of no letters": (b"K\x01K\x02\x93.", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_impossible_pickles_take_no_memory(kind: str) -> None:
    data, message = BAD[kind]
    tracemalloc.start()
    try:
        if message:
            with pytest.raises(NpyError, match=message):
                loaded(PROTOCOL + data)
        else:
            assert loaded(PROTOCOL + data) is None, "claims that need no memory here"
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [b"\x85" * 90_000, b"q\x00h\x00h\x00\x86" * 60])
def test_deep_and_doubling_tuples_are_never_turned_to_text(shape: bytes) -> None:
    """As the shape of an array, a dtype's name, a name to import: an error message must not write them out."""
    nest = b")" + shape
    if shape[:1] == b"q":  # each pair holds the one before twice: 2**60 entries when written out
        nest = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    with time_limit(0):
        for data in (
            ARRAY + b"(K\x01" + nest + DTYPE + b"\x89C\x01atb.",
            b"cnumpy\ndtype\n" + nest + b"\x85R.",
            nest + b"K\x01\x93.",
            b"}" + nest + b"K\x01s.",
        ):
            with pytest.raises(NpyError) as told:
                loaded(PROTOCOL + data)
            assert len(str(told.value)) < 300


@pytest.mark.parametrize("cases", CASES)
def test_changed_pickles(tmp_path: Path, cases: range) -> None:
    """Both documented layouts with bytes changed: read, or refused in words; nothing else, in little memory."""
    values = columns()
    counts = {"read": 0, "refused": 0}
    for layout in ("dicts", "arrays"):
        folder = tmp_path / layout
        array = dicts(values) if layout == "dicts" else np.array(observed(values), dtype=object)
        write_numbers(folder, values)
        np.save(folder / "observations.npy", array, allow_pickle=True)
        sound = (folder / "observations.npy").read_bytes()
        for case in cases:
            (folder / "observations.npy").write_bytes(change_bytes(sound, random.Random(case)))
            with time_limit(case):
                try:
                    reader = open_dataset(folder, allow_pickle=True)
                    for episode, length in enumerate(reader.lengths):
                        read = reader.read(episode, np.arange(length), ("action", "proprio", "image_left"))
                        assert read["proprio"].shape == (length, 16)
                        assert read["image_left"].dtype == np.uint8
                except UserError as error:
                    # A key whose name changed is another camera, and the one that was asked for is not there.
                    assert "Invalid observation format" in str(error) or "Unknown feature 'image_left'" in str(error)
                    counts["refused"] += 1
                else:
                    counts["read"] += 1
    print(counts)
    assert counts["refused"] > len(cases) // 4
    assert counts["read"] > 0


@pytest.mark.parametrize("cases", CASES)
def test_random_programs(cases: range) -> None:
    """Operations in random order, with the names and gadgets of real pickles among them."""
    pieces = [data for data, _ in BAD.values()] + [ARRAY, DTYPE, b"cos\nsystem\n", b"X\x02\x00\x00\x00ls", b"\x85R"]
    pieces += [bytes([c]) for c in b"()]}012NabcdehijlopqrRstu.\x81\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x92\x93\x94"]
    before = set(sys.modules)
    outcomes = {"read": 0, "refused": 0}
    for case in range(len(cases) * 20):
        rng = random.Random(case)
        with time_limit(case):
            try:
                loaded(PROTOCOL + b"".join(rng.choices(pieces, k=rng.randint(1, 40))))
            except NpyError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
    print(outcomes)
    assert set(sys.modules) == before, "nothing is imported on behalf of a file"
    assert outcomes["refused"] > 0
