"""From the lists of a parsed record to arrays, one row a step."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from vla_ft.data.formats.tf_example import Feature, WireError
from vla_ft.data.formats.tfds_features import FeatureSpec

_LENGTHS, _FLAT = "/ragged_row_lengths_0", "/ragged_flat_values"


def values(
    features: Mapping[str, Feature], spec: FeatureSpec, length: int, steps: np.ndarray | None = None
) -> np.ndarray:
    """A leaf of an episode of ``length`` steps, at ``steps`` (all by default); time first where it has a value a step.

    Numbers come in the dtype that ``features.json`` declares, text as an object array of str, images as an object array
    of their encoded bytes, lists of differing lengths as an object array of arrays. Raises WireError.
    """
    if spec.ragged:
        return _ragged(features, spec, length)[... if steps is None else steps]
    feature = _feature(features, spec.key)
    if spec.kind in ("image", "text") or spec.encoding != "none":
        return _strings(feature, spec, length, steps)
    if spec.kind != "number":
        raise WireError(f"features of class {spec.kind_name} cannot be read")
    shape = ((length,) if spec.per_step else ()) + tuple(-1 if n is None else n for n in spec.shape)
    whole = _reshape(_numbers(feature, spec.dtype), shape)
    return whole if steps is None or not spec.per_step else whole[steps]


def decode_image(encoded: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """A JPEG or PNG as uint8 [H, W, 3]; one that is not of ``size`` is not decoded at all. Raises WireError.

    No other format is tried: Pillow would hand some to other programs, such as EPS to Ghostscript.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            if size is not None and (image.height, image.width) != size:
                raise WireError(f"{image.height} x {image.width} pixels, expected {size[0]} x {size[1]}")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # which copies
    except WireError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damage makes them stumble over
        raise WireError(f"{len(encoded)} bytes that are no JPEG or PNG ({error})") from error


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) from an image's header. Raises WireError."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            return image.height, image.width
    except Exception as error:  # as above
        raise WireError(f"{len(encoded)} bytes that are no JPEG or PNG ({error})") from error


def _feature(features: Mapping[str, Feature], key: str) -> Feature:
    if key not in features:
        raise WireError("the record does not hold it")
    return features[key]


def _numbers(feature: Feature, dtype: str) -> np.ndarray:
    wanted = np.dtype(dtype)
    if wanted.kind == "f":
        return feature.floats().astype(wanted, copy=False)
    integers = feature.ints()
    if wanted == np.uint64:
        return integers.view(np.uint64)
    limits = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    if len(integers) and not limits[0] <= integers.min() <= integers.max() <= limits[1]:
        raise WireError(f"it holds {integers.min()} to {integers.max()}, which is no {dtype}")
    return integers.astype(wanted, copy=False)


def _reshape(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    known = math.prod(n for n in shape if n != -1)
    fits = len(flat) == known if -1 not in shape else known > 0 and len(flat) % known == 0
    if not fits:
        raise WireError(
            f"it holds {len(flat)} values, expected {' x '.join('any' if n < 0 else str(n) for n in shape)}"
        )
    return flat.reshape(shape)


def _strings(feature: Feature, spec: FeatureSpec, length: int, steps: np.ndarray | None) -> np.ndarray:
    spans = feature.spans()
    # Of an encoded tensor there is one string a step, whatever its shape.
    shape = () if spec.encoding != "none" or spec.kind == "image" else spec.shape
    rows = _reshape(
        np.arange(len(spans)), ((length,) if spec.per_step else ()) + tuple(-1 if n is None else n for n in shape)
    )
    rows = rows if steps is None or not spec.per_step else rows[steps]
    chosen = feature.at([spans[row] for row in rows.reshape(-1)])
    if spec.kind == "number":
        inner = tuple(-1 if n is None else n for n in spec.shape)
        arrays = [_reshape(_unpack(one, spec), inner) for one in chosen]
        empty = np.empty((0, *(max(n, 0) for n in inner)), spec.dtype)
        return (np.stack(arrays) if arrays else empty) if spec.per_step else arrays[0]
    result = np.empty(len(chosen), dtype=object)
    for place, one in enumerate(chosen):
        result[place] = _text(one) if spec.kind == "text" else one
    return result.reshape(rows.shape)


def _unpack(encoded: bytes, spec: FeatureSpec) -> np.ndarray:
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    if spec.encoding == "zlib":
        bound = 1 << 28 if spec.width is None else spec.width * dtype.itemsize
        try:
            encoded = zlib.decompressobj().decompress(encoded, bound + 1)
        except zlib.error as error:
            raise WireError(f"zlib data that cannot be expanded ({error})") from error
    if len(encoded) % dtype.itemsize:
        raise WireError(f"{len(encoded)} bytes of {spec.dtype}")
    return np.frombuffer(encoded, dtype=dtype).astype(spec.dtype, copy=False)


def _ragged(features: Mapping[str, Feature], spec: FeatureSpec, length: int) -> np.ndarray:
    """Lists of differing lengths, one a step. TFDS stores them end to end, with their lengths beside."""
    if spec.kind != "number" or None in spec.shape or spec.encoding != "none" or spec.key + _LENGTHS not in features:
        raise WireError(f"lists of {spec.kind_name} inside a step cannot be read")
    lengths = features[spec.key + _LENGTHS].ints()
    flat = _reshape(_numbers(_feature(features, spec.key + _FLAT), spec.dtype), (-1, *spec.shape))  # type: ignore[arg-type]
    if len(lengths) != length or (lengths < 0).any() or lengths.sum() != len(flat):
        raise WireError(f"{len(lengths)} lists of {lengths.sum()} rows, expected {length} lists and {len(flat)} rows")
    result = np.empty(length, dtype=object)
    for step, piece in enumerate(np.split(flat, np.cumsum(lengths)[:-1]) if length else []):
        result[step] = piece
    return result


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"text that is no UTF-8: {value[:40]!r}") from error
