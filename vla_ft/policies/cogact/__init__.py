"""CogACT: a vision-language model's last token conditions a diffusion transformer over actions."""

from __future__ import annotations

import dataclasses
from typing import Any

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.policies.cogact.checkpoint import load_weights
from vla_ft.policies.cogact.config import STAND_IN, Config
from vla_ft.policies.cogact.model import CogAct
from vla_ft.policies.cogact.processing import CogActProcessor, find_camera
from vla_ft.policies.cogact.published_run import write_published
from vla_ft.policies.cogact.setup_lines import setup_lines

__all__ = [
    "COMPLETES",
    "EXPORT_FOLDERS",
    "Config",
    "build_model",
    "build_processor",
    "load_weights",
    "remarks",
    "setup_lines",
    "suggest",
    "without_files",
]

EXPORT_FOLDERS = {"cogact": write_published}
"""Published layouts that ``vla-ft export`` writes."""
COMPLETES = True
"""``load_weights`` takes a ``base`` for parts that a file leaves out, so that exports may leave out frozen ones."""


def build_model(config: Config, description: DatasetDescription) -> CogAct:
    """A model with fresh weights for a dataset's actions. Raises UserError for a dataset without the camera."""
    find_camera(config, description)
    return CogAct(config, description.action_dim)


def build_processor(config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> CogActProcessor:
    """The processor of the same configuration."""
    return CogActProcessor(config, description, statistics)


def without_files(config: Config) -> Config:
    """The same model with the stand-in tokenizer: a forecast needs no file."""
    return dataclasses.replace(config, tokenizer=STAND_IN)


def remarks(config: Config, trained: dict[str, int]) -> list[str]:
    """What the banner adds: a tokenizer that knows no language."""
    if config.tokenizer != STAND_IN:
        return []
    return ["Stand-in tokenizer: instructions become checksums of their bytes. Right for mock runs alone."]


def suggest(description: DatasetDescription, statistics: DatasetStatistics) -> dict[str, Any]:
    """Model settings for a dataset: the published chunk, Llama 2's tokenizer, and the first camera by name."""
    return {"camera": next(iter(description.cameras), None), "tokenizer": "llama-2-tokenizer"}
