"""A trained policy as somebody else's code saved it, in a folder that says everything about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.registry import POLICIES, load_policy
from vla_ft.weights.catalogue import load_catalogue
from vla_ft.weights.places import resolve

_FILES = {".pt": ("pizero",)}
"""Endings of files that hold weights and name no policy -> whose they may be (``open_published_file``)."""
_SIGNS = {"act": {"dim_model", "n_vae_encoder_layers", "vision_backbone"}}
"""Keys that only this policy's ``config.json`` has: some older folders do not state their type."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is needed to run such a policy, in our terms. Its weights are read by the policy's ``load_weights``."""

    policy: str
    settings: dict[str, Any]
    """The ``model`` section of a recipe that describes its network."""
    description: DatasetDescription
    """The robot as far as the folder tells: widths and cameras; names are numbers and units unknown."""
    statistics: DatasetStatistics
    """Such that the processor of ``settings`` normalises as the policy was trained, whatever form that had."""
    folder: Path
    """Or the one file."""
    layout: str
    actions_per_chunk: int
    """Actions of a chunk that are executed before the next is asked for."""
    ensemble: float | None = None
    """Coefficient of temporal ensembling, which asks at every step; None without."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """The robot's feature names -> the policy's, in the publisher's words."""
    mapped: bool = False
    """The model has no numbers but those of the file: it can be made of the mapped file without memory of its own."""
    image_size: tuple[int, int] | None = None
    """(height, width) that a dataset's pictures of the described cameras are resized to, as in training; None takes
    all of its cameras as they are stored."""
    names_known: bool = False
    """The description has the names of its dimensions from the data: another dataset must have the same."""
    standardization: str | None = None
    """The published dataset that it was trained on: that one's RLDS files are read in its standard form."""


def kind_of(folder: Path) -> str | None:
    """The policy whose folder of LeRobot's kind this is (``config.json`` with a ``type``), or None."""
    path = folder / "config.json"
    if not path.is_file() or (folder / "manifest.json").is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except (ValueError, OSError):
        return None
    if not isinstance(values, dict):
        return None
    signed = (policy for policy, keys in _SIGNS.items() if keys <= values.keys())
    kind = values.get("type", next(signed, None))
    return kind if kind in POLICIES and hasattr(load_policy(kind), "open_published") else None


def folder_of(path: Path) -> Path:
    """The folder that a path of weights lies in, or is."""
    return path if path.is_dir() else path.parent


def open_published(name_or_path: str | Path) -> Published | None:
    """A published policy, by its folder, a file of weights in it, or the name of fetched ones; None for a folder of
    another kind. Raises UserError for a damaged one."""
    folder = _resolved(name_or_path)
    kind = None if folder is None else kind_of(folder)
    return None if kind is None else load_policy(kind).open_published(folder)  # type: ignore[attr-defined]


def open_published_file(
    name_or_path: str | Path, statistics: Path | None, camera: str, settings: Mapping[str, Any]
) -> Published | None:
    """A published policy that is one file of weights, or the name of a fetched one; None for anything else.

    ``statistics``: of its training data; ``camera``: what its one camera is called here; ``settings``: of ``model``,
    where the file does not say. Raises UserError for what is missing, damaged or not fetched.
    """
    try:
        path = resolve(name_or_path)
    except UserError:
        if str(name_or_path) in load_catalogue():  # it is known, and not here: the error has the command
            raise
        return None
    if not path.is_file():
        return None
    policies = (load_policy(name) for name in _FILES.get(path.suffix, ()))
    found = (policy.open_published_file(path, statistics, camera, settings) for policy in policies)  # type: ignore[attr-defined]
    return next((published for published in found if published is not None), None)


def published_settings(policy: str, name_or_path: str, layout: str) -> dict[str, Any] | None:
    """The ``model`` settings of published weights to start from; None where nothing beside them says any, and for what
    is not here (whoever loads it says so). Raises UserError for a damaged folder."""
    folder = _resolved(name_or_path)
    if folder is None or layout not in ("auto", "lerobot") or kind_of(folder) != policy:
        return None
    return load_policy(policy).published_settings(folder)  # type: ignore[attr-defined]


def _resolved(name_or_path: str | Path) -> Path | None:
    try:
        return folder_of(resolve(name_or_path))
    except UserError:
        return None
