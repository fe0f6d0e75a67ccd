"""ACT (Action Chunking with Transformers): the original DETR-VAE and LeRobot's form in one model."""

from __future__ import annotations

from typing import Any

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.act.checkpoint import load_weights
from vla_ft.policies.act.config import Config
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.policies.act.processing import ActProcessor

__all__ = ["Config", "build_model", "build_processor", "load_weights", "suggest"]

LARGEST_HEIGHT = 480
"""Pixels: the height that ACT was published with. Larger frames cost memory by their area."""


def build_model(config: Config, description: DatasetDescription) -> Act:
    """A model with fresh weights for a dataset's cameras and dimensions. Raises UserError where they cannot fit."""
    if not description.cameras:
        raise UserError(f"Dataset '{description.name}' has no cameras; ACT needs at least one.")
    heights = {height for height, _ in description.cameras.values()}
    if config.camera_layout == "width" and config.image_size is None and len(heights) > 1:
        sizes = ", ".join(f"{name} {height}x{width}" for name, (height, width) in description.cameras.items())
        raise UserError(
            f"camera_layout 'width' needs cameras of one height, got {sizes}. "
            "Set camera_layout=sequence or an image_size."
        )
    dimensions = Dimensions(
        cameras=tuple(description.cameras), action=description.action_dim, proprio=description.proprio_dim
    )
    return Act(config, dimensions)


def build_processor(config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> ActProcessor:
    """The processor of the same configuration."""
    return ActProcessor(config, description, statistics)


def suggest(description: DatasetDescription, statistics: DatasetStatistics) -> dict[str, Any]:
    """Model settings for a dataset: chunks of one second, and frames no larger than ALOHA's, in multiples of 8."""
    settings: dict[str, Any] = {}
    if description.fps:
        settings["chunk_size"] = max(1, round(description.fps))
    height, width = max(description.cameras.values(), default=(0, 0))
    if height > LARGEST_HEIGHT:
        settings["image_size"] = [LARGEST_HEIGHT, max(8, round(width * LARGEST_HEIGHT / height / 8) * 8)]
    elif height:
        settings["image_size"] = None
    return settings
