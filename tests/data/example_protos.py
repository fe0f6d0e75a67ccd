"""``tf.train.Example`` by Google's protobuf library: what our own parser and writer are held to."""

from __future__ import annotations

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPE = descriptor_pb2.FieldDescriptorProto
_LISTS = {"BytesList": _TYPE.TYPE_BYTES, "FloatList": _TYPE.TYPE_FLOAT, "Int64List": _TYPE.TYPE_INT64}


def _describe(packed: bool) -> descriptor_pb2.FileDescriptorProto:
    package = "packed" if packed else "unpacked"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, kind in _LISTS.items():
        message = file.message_type.add(name=name)
        field = message.field.add(name="value", number=1, type=kind, label=_TYPE.LABEL_REPEATED)
        if kind != _TYPE.TYPE_BYTES:
            field.options.packed = packed
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(zip(("bytes_list", "float_list", "int64_list"), _LISTS, strict=True), 1):
        feature.field.add(
            name=name, number=number, type=_TYPE.TYPE_MESSAGE, type_name=f".{package}.{kind}", oneof_index=0,
            label=_TYPE.LABEL_OPTIONAL,
        )  # fmt: skip
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_TYPE.TYPE_STRING, label=_TYPE.LABEL_OPTIONAL)
    for message, field, number, kind, label in (
        (entry, "value", 2, "Feature", _TYPE.LABEL_OPTIONAL),
        (features, "feature", 1, "Features.FeatureEntry", _TYPE.LABEL_REPEATED),
        (file.message_type.add(name="Example"), "features", 1, "Features", _TYPE.LABEL_OPTIONAL),
    ):
        message.field.add(
            name=field, number=number, type=_TYPE.TYPE_MESSAGE, type_name=f".{package}.{kind}", label=label
        )
    return file


_POOL = descriptor_pool.DescriptorPool()
for _packed in (True, False):
    _POOL.Add(_describe(_packed))
Example = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("packed.Example"))
UnpackedExample = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("unpacked.Example"))


def build(features: dict, example=Example):
    """An Example message of lists of bytes, float32 and int64 arrays."""
    message = example()
    for name, values in features.items():
        feature = message.features.feature[name]
        if isinstance(values, np.ndarray):
            (feature.float_list if values.dtype == np.float32 else feature.int64_list).value.extend(values.tolist())
        else:
            feature.bytes_list.value.extend(values)
    return message


def lists(serialized: bytes) -> dict[str, tuple[str, list]]:
    """(kind, values) by name, as protobuf reads them. Raises google.protobuf's DecodeError."""
    found = {}
    for name, feature in Example.FromString(serialized).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind or "", list(getattr(feature, kind).value) if kind else [])
    return found
