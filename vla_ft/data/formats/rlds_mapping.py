"""How RLDS features become this project's cameras and vectors: names, and whether a written set has them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vla_ft.data.formats.tfds_features import FeatureSpec
from vla_ft.data.formats.tfds_folder import FEATURES
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError, unknown

SIDECAR = "vla_ft.json"
"""Beside the shards of what this project wrote: the description, which TFDS has no place for."""
_OBSERVATION = "observation/"


def image_feature(camera: str) -> str:
    """Where this project writes a camera; ``camera_name`` gives it back."""
    return f"{_OBSERVATION}image" if camera == "primary" else f"{_OBSERVATION}{IMAGE_PREFIX}{camera}"


def camera_name(feature: str) -> str:
    """The camera of an image feature: ``observation/image_top`` and ``observation/top_image`` are ``top``."""
    short = feature.removeprefix(_OBSERVATION)
    if short == "image":
        return "primary"
    return short.removeprefix(IMAGE_PREFIX).removesuffix("_image").replace("/", "_") or short


def choose_cameras(features: dict[str, FeatureSpec], asked: Sequence[str] | None) -> dict[str, FeatureSpec]:
    """Camera -> image feature: those ``asked`` for, all by default. Raises UserError for one that is not there."""
    images = [s for s in features.values() if s.is_camera and s.per_step and s.name.startswith(_OBSERVATION)]
    named = [camera_name(spec.name) for spec in images]
    # Two features of one name (image_top beside top_image) keep their own.
    present = {
        name if named.count(name) == 1 else spec.name.removeprefix(_OBSERVATION): spec
        for name, spec in zip(named, images, strict=True)
    }
    for camera in asked or ():
        if camera not in present:
            raise unknown("camera", camera, present)
    return {camera: present[camera] for camera in (sorted(present) if asked is None else asked)}


def check_written(path: Path, features: dict[str, FeatureSpec], written: DatasetDescription) -> None:
    """What this project wrote has all that its description says. Raises UserError."""
    expected: dict[str, tuple[str, int]] = {
        "action": ("number", written.action_dim),
        "language_instruction": ("text", 1),
    }
    if written.proprio_dim:
        expected["observation/state"] = ("number", written.proprio_dim)
    for camera, (height, width) in written.cameras.items():
        expected[image_feature(camera)] = ("image", height * width * 3)
    for key, wanted in expected.items():
        if key not in features or (features[key].kind, features[key].width) != wanted:
            raise UserError(
                f"{path}: {SIDECAR} and {FEATURES} do not agree on '{key}'. Restore the files from where they were "
                "written."
            )


def dimension_names(part: str, specs: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """Names of a vector's dimensions, from the leaves that it joins."""
    names: list[str] = []
    for spec in specs:
        width = spec.width or 0
        stem = part if len(specs) == 1 else spec.name.rpartition("/")[2]
        names += [stem] if width == 1 and len(specs) > 1 else [f"{stem}_{i}" for i in range(width)]
    return tuple(names)
