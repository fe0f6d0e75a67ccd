"""ACT (Action Chunking with Transformers): the original DETR-VAE and LeRobot's form in one model."""

from __future__ import annotations

from typing import Any

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.act.checkpoint import load_weights
from vla_ft.policies.act.config import Config
from vla_ft.policies.act.lerobot import our_key
from vla_ft.policies.act.lerobot_folder import open_published, published_settings
from vla_ft.policies.act.lerobot_writer import lerobot_folder
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.policies.act.processing import ActProcessor

__all__ = [
    "Config",
    "build_model",
    "build_processor",
    "lerobot_folder",
    "load_weights",
    "open_published",
    "our_key",
    "published_settings",
    "suggest",
]

LARGEST_HEIGHT = 480
"""Pixels: the height that ACT was published with. Larger frames cost memory by their area."""


def build_model(config: Config, description: DatasetDescription) -> Act:
    """A model with fresh weights for a dataset's cameras and dimensions. Raises UserError where they cannot fit."""
    _check_cameras(config, description)
    heights = {height for height, _ in description.cameras.values()}
    own_size = config.image_size is None and config.backbone != "clip_vit_b32" and config.camera_fusion == "none"
    if config.camera_layout == "width" and own_size and len(heights) > 1:
        sizes = ", ".join(f"{name} {height}x{width}" for name, (height, width) in description.cameras.items())
        raise UserError(
            f"camera_layout 'width' needs cameras of one height, got {sizes}. "
            "Set camera_layout=sequence or an image_size."
        )
    dimensions = Dimensions(
        cameras=tuple(description.cameras),
        action=description.action_dim,
        proprio=description.proprio_dim,
        env_state=len(description.environment_names),
    )
    return Act(config, dimensions)


def _check_cameras(config: Config, description: DatasetDescription) -> None:
    cameras = ", ".join(description.cameras) or "none"
    if not description.cameras and not description.environment_names:
        raise UserError(f"Dataset '{description.name}' has no cameras; ACT needs at least one.")
    if config.camera_fusion != "none" and len(description.cameras) != 2:
        raise UserError(
            f"camera_fusion={config.camera_fusion} fuses exactly two cameras, left and right, this dataset has "
            f"{len(description.cameras)}: {cameras}. Name two with data.cameras=[...], or set camera_fusion=none."
        )
    lacking = [camera for camera in description.cameras if camera not in config.pixel_statistics]
    if config.pixel_statistics and lacking:
        raise UserError(
            f"pixel_statistics has {', '.join(config.pixel_statistics)}, the cameras are {cameras}: "
            f"{', '.join(lacking)} would be normalised otherwise. Name them as the weights' own cameras, or give all."
        )


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
