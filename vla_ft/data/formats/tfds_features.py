"""``features.json`` of a TFDS folder: which lists a record holds, and what they mean.

TFDS flattens a nested feature to names joined by ``/``; an RLDS episode's steps are one nested dataset, so a record has
one list per leaf with the values of all steps behind one another (``steps/observation/image``: one encoded image a
step; ``steps/action``: steps x width numbers). Integers and booleans become int64, floats float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vla_ft.errors import UserError

STEPS = "steps/"
_TEXT_DTYPES = ("string", "object", "str", "bytes")
_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_MODULES = {
    "FeaturesDict": "features_dict.FeaturesDict",
    "Dataset": "dataset_feature.Dataset",
    "Tensor": "tensor_feature.Tensor",
    "Scalar": "scalar.Scalar",
    "Image": "image_feature.Image",
    "Text": "text_feature.Text",
}


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """A leaf. ``shape`` is that of one step (or of the episode) and has None where TFDS leaves it open.

    ``key`` names the list in a record; ``ragged`` is set where steps hold lists of differing lengths. ``encoding`` is
    ``bytes`` or ``zlib`` for numbers that TFDS keeps as raw little-endian bytes, one string a step.
    """

    key: str
    kind: Literal["image", "text", "number", "other"]
    dtype: str
    shape: tuple[int | None, ...]
    encoding: str = "none"
    ragged: bool = False
    kind_name: str = ""

    @property
    def per_step(self) -> bool:
        """Whether there is a value a step; otherwise it belongs to the episode."""
        return self.key.startswith(STEPS)

    @property
    def name(self) -> str:
        """``key`` without ``steps/``: ``observation/image``, ``action``, ``episode_metadata/file_path``."""
        return self.key.removeprefix(STEPS)

    @property
    def width(self) -> int | None:
        """Numbers a step; None where that is left open."""
        return None if None in self.shape or self.ragged else math.prod(n or 0 for n in self.shape)

    @property
    def is_camera(self) -> bool:
        """Colour images of 8 bits, one a step."""
        return self.kind == "image" and self.dtype == "uint8" and self.shape[-1:] == (3,) and not self.ragged


def read_features(path: Path) -> dict[str, FeatureSpec]:
    """The leaves of a ``features.json`` by name. Raises UserError when it is missing, damaged or describes no steps."""
    try:
        tree = json.loads(path.read_text())
        specs = {spec.name: spec for spec in _leaves(tree, "", 0)}
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}. Expected the description that TFDS writes beside its shards."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} describes no features ({type(error).__name__}: {error}). Copy it again from where the dataset "
            "came."
        ) from error
    if not any(spec.per_step for spec in specs.values()):
        raise UserError(
            f"{path} has no 'steps' (it has: {', '.join(specs) or 'nothing'}). Expected an RLDS dataset: one record an "
            "episode, its steps a nested dataset."
        )
    return specs


def features_json(leaves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The ``features.json`` of leaves under ``steps/``: name -> a node made by ``tensor``, ``image`` or ``text``."""
    root: dict[str, Any] = {}
    for name, node in leaves.items():
        *parents, last = name.split("/")
        place = root
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = node
    return _dict({"steps": _node("Dataset", sequence={"feature": _nest(root), "length": "-1"})})


def tensor(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """A node of numbers, not encoded."""
    content = {"dtype": dtype, "encoding": "none", "shape": _shape_json(shape)}
    return _node("Tensor" if shape else "Scalar", tensor=content)


def image(size: tuple[int, int], encoding_format: str) -> dict[str, Any]:
    """A node of colour images of (height, width), ``jpeg`` or ``png``."""
    content = {"dtype": "uint8", "encodingFormat": encoding_format, "shape": _shape_json((*size, 3))}
    return _node("Image", image=content)


def text() -> dict[str, Any]:
    """A node of UTF-8 strings."""
    return _node("Text", text={})


def _nest(tree: dict[str, Any]) -> dict[str, Any]:
    return tree if "pythonClassName" in tree else _dict({name: _nest(child) for name, child in tree.items()})


def _dict(children: dict[str, Any]) -> dict[str, Any]:
    return _node("FeaturesDict", featuresDict={"features": children})


def _node(kind: str, **content: Any) -> dict[str, Any]:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{_MODULES[kind]}", **content}


def _shape_json(shape: tuple[int, ...]) -> dict[str, list[str]]:
    return {"dimensions": [str(n) for n in shape]} if shape else {}


def _leaves(node: dict[str, Any], prefix: str, rank: int) -> Iterator[FeatureSpec]:
    """Leaves below ``node``; ``rank`` counts the sequences around it, the steps included."""
    kind, content = _kind_and_content(node)
    if kind == "FeaturesDict":
        for name, child in content.get("features", content).items():
            yield from _leaves(child, f"{prefix}/{name}" if prefix else name, rank)
    elif kind in ("Dataset", "Sequence"):
        yield from _leaves(content["feature"], prefix, rank + 1)
    else:
        # A list beside the steps has an open first dimension; one inside a step has lengths of its own.
        outer: tuple[int | None, ...] = (None,) if rank and not prefix.startswith(STEPS) else ()
        yield _leaf(kind, content, prefix, outer, ragged=rank > 1)


def _leaf(kind: str, content: dict[str, Any], key: str, outer: tuple[int | None, ...], ragged: bool) -> FeatureSpec:
    shape = (*outer, *_shape(content.get("shape")))
    dtype = str(content.get("dtype", "")).removeprefix("tf.")
    common: dict[str, Any] = {"key": key, "shape": shape, "ragged": ragged, "kind_name": kind}
    if kind == "Image":
        return FeatureSpec(kind="image", dtype=dtype or "uint8", **common)
    if kind == "Text" or dtype in _TEXT_DTYPES:
        return FeatureSpec(kind="text", dtype="string", **common)
    if kind == "ClassLabel":
        return FeatureSpec(kind="number", dtype="int64", **common)
    dtype = "float32" if dtype == "bfloat16" else dtype  # what TFDS stores it as
    if kind in ("Tensor", "Scalar", "BBoxFeature") and dtype in _NUMBERS and shape.count(None) <= 1:
        encoding = str(content.get("encoding") or "none").lower().removeprefix("encoding.")
        return FeatureSpec(kind="number", dtype=dtype, encoding=encoding, **common)
    return FeatureSpec(kind="other", dtype=dtype, **common)


def _kind_and_content(node: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Class name and content, of the form that TFDS writes now and of the one before 2021 (``type``, ``content``)."""
    if "type" in node:
        content = node["content"]
        return node["type"].rpartition(".")[2], json.loads(content) if isinstance(content, str) else content
    kind = node["pythonClassName"].rpartition(".")[2]
    contents = [value for name, value in node.items() if name not in ("pythonClassName", "description")]
    return kind, contents[0] if contents else {}


def _shape(value: Any) -> tuple[int | None, ...]:
    dimensions = value.get("dimensions", []) if isinstance(value, dict) else value or []
    return tuple(None if n is None or int(n) < 0 else int(n) for n in dimensions)
