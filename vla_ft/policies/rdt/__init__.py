"""RDT (Robotics Diffusion Transformer): rdt-1b and rdt-170m, with the published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.policies.rdt.checkpoint import load_weights
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.language import InstructionTable
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.processing import RdtProcessor, check_cameras, vector_maps
from vla_ft.policies.rdt.publish import write_published

__all__ = ["EXPORT_FOLDERS", "Config", "build_model", "build_processor", "load_weights", "remarks", "suggest"]

EXPORT_FOLDERS = {"rdt": write_published}
"""Names of ``vla-ft export format=NAME`` -> what writes it."""


def build_model(config: Config, description: DatasetDescription) -> Rdt:
    """A model with fresh weights. Raises UserError where it cannot fit the dataset."""
    check_cameras(config, description)
    vector_maps(config, description)
    return Rdt(config)


def build_processor(config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> RdtProcessor:
    """The processor of the same configuration."""
    return RdtProcessor(config, description, statistics)


def remarks(config: Config, trained: Mapping[str, int]) -> list[str]:
    """What the banner adds: where the embeddings of instructions come from."""
    return [f"Language: {InstructionTable(config.language).note}."]


def suggest(description: DatasetDescription, statistics: DatasetStatistics) -> dict[str, Any]:
    """Model settings for a dataset: cameras by what their names say, and ALOHA's mapping for 14 dimensions."""
    settings: dict[str, Any] = {"cameras": _places(list(description.cameras))}
    if description.action_dim == 14:
        # Both grippers: recordings of one arm's work leave the other's closed.
        largest = max(part["action"].max[side] for part in statistics.each().values() for side in (6, 13))
        settings["vector"] = "aloha" if largest <= 1.5 else "agilex"
    return settings


def _places(cameras: list[str]) -> dict[str, str | None]:
    right = next((c for c in cameras if "right" in c and "wrist" in c), None)
    left = next((c for c in cameras if "left" in c and "wrist" in c), None)
    if right is None and left is None:  # a single arm's wrist camera is the right one
        right = next((c for c in cameras if "wrist" in c), None)
    rest = [c for c in cameras if c not in (right, left)]
    external = next((c for c in rest if "high" in c), rest[0] if rest else None)
    return {"external": external, "right_wrist": right, "left_wrist": left}
