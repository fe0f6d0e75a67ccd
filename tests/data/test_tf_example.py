"""The wire format of tf.train.Example against Google's protobuf library."""

from __future__ import annotations

import example_protos
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.formats.tf_example import WireError, parse_example, serialize_example

FEATURES = {
    "steps/observation/image": [b"\xff" * 300, b"", b"abc"],
    "steps/action": np.array([1.5, -2.25, np.float32(1e-30), 0], np.float32),
    "steps/number": np.array([0, 1, 127, 128, 300, -1, 2**63 - 1, -(2**63)], np.int64),
    "steps/flag": np.array([0, 1, 1, 0], np.int64),
    "nothing": [],
    "no_floats": np.empty(0, np.float32),
    "ünïcode": [b"x"],
}

wide = st.integers(-(2**63), 2**63 - 1)
some_lists = st.one_of(
    st.lists(st.binary(max_size=200), min_size=1, max_size=8),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1).map(lambda v: np.array(v, np.float32)),
    st.lists(st.one_of(wide, st.integers(0, 1)), min_size=1).map(lambda v: np.array(v, np.int64)),
)
some_features = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=20), some_lists, max_size=6)


def ours(serialized: bytes) -> dict[str, tuple[str, list]]:
    """As ``example_protos.lists``, by our parser, every list decoded."""
    found: dict[str, tuple[str, list]] = {}
    for name, feature in parse_example(serialized).items():
        decode = {
            "bytes": feature.bytes_at, "float": lambda f=feature: f.floats().tolist(),
            "int64": lambda f=feature: f.ints().tolist(), "empty": list,
        }  # fmt: skip
        kind = "" if feature.kind == "empty" else f"{feature.kind}_list"
        found[name] = (kind, decode[feature.kind]())
        assert feature.count() == len(found[name][1])
    return found


def same(a: dict, b: dict) -> bool:
    """Equality in which NaN equals NaN."""
    return str(sorted(a.items())) == str(sorted(b.items()))


@pytest.mark.parametrize("example", [example_protos.Example, example_protos.UnpackedExample])
def test_we_read_what_protobuf_writes(example) -> None:
    serialized = example_protos.build(FEATURES, example).SerializeToString()
    assert same(ours(serialized), example_protos.lists(serialized))
    assert parse_example(serialized)["steps/number"].ints().tolist() == FEATURES["steps/number"].tolist()


def test_protobuf_reads_what_we_write() -> None:
    serialized = serialize_example(FEATURES)
    assert same(example_protos.lists(serialized), ours(serialized))
    assert example_protos.build(FEATURES).SerializeToString(deterministic=True) == serialized


@settings(max_examples=50, deadline=None)
@given(some_features)
def test_round_trip_of_anything(features: dict) -> None:
    serialized = serialize_example(features)
    back = parse_example(serialized)
    assert set(back) == set(features)
    for name, values in features.items():
        if isinstance(values, list):
            assert back[name].bytes_at() == values
        else:
            read = back[name].floats() if values.dtype == np.float32 else back[name].ints()
            assert np.array_equal(read, values)
    assert same(example_protos.lists(serialized), ours(serialized))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_refused_or_read_as_protobuf_reads_them(data) -> None:
    serialized = bytearray(serialize_example(FEATURES))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(serialized) - 1))
        serialized[place] = data.draw(st.integers(0, 255))
    serialized = bytes(serialized[: data.draw(st.sampled_from([len(serialized)] * 4 + [len(serialized) // 2]))])
    try:
        found = ours(serialized)
    except WireError:
        return
    try:
        assert same(found, example_protos.lists(serialized))
    except DecodeError:
        pytest.fail("protobuf refuses what we read")


def test_features_point_into_the_record_they_were_read_from() -> None:
    serialized = serialize_example(FEATURES)
    feature = parse_example(memoryview(serialized))["steps/observation/image"]
    assert feature.bytes_at() == FEATURES["steps/observation/image"]
    (begin, end), *_ = feature.spans()
    assert serialized[begin:end] == b"\xff" * 300


def test_values_at_places_and_wrong_kinds() -> None:
    features = parse_example(serialize_example(FEATURES))
    images = features["steps/observation/image"]
    assert images.bytes_at([2, 0, 2]) == [b"abc", b"\xff" * 300, b"abc"]
    assert features["nothing"].count() == 0
    assert parse_example(b"") == {}
    for name, read in (("steps/action", "ints"), ("steps/number", "floats"), ("steps/flag", "spans")):
        with pytest.raises(WireError, match="the list holds"):
            getattr(features[name], read)()
    with pytest.raises(TypeError, match="expected float32, int64"):
        serialize_example({"x": np.zeros(2)})
    twice = serialize_example({"x": [b"1"]}) + serialize_example({"x": [b"2"]})
    with pytest.raises(WireError, match="feature 'x' is there twice"):
        parse_example(twice)
