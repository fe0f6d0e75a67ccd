"""A small RDT, a dataset for it, and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.mock import MockConfig, describe, write_mock
from vla_ft.data.statistics import DatasetStatistics, compute_statistics
from vla_ft.data.windows import build_sample
from vla_ft.policies.base import Batch
from vla_ft.policies.rdt.config import CameraSlots, Config, LanguageConfig, VisionConfig
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.processing import RdtProcessor

MOCK = MockConfig(episodes=2, min_length=12, max_length=14, image_size=(16, 24), cameras=("top", "wrist"))
DESCRIPTION = describe(MOCK)


def tiny(**changes: Any) -> Config:
    """Two blocks of 16 numbers over pictures of 28 pixels and stand-in language."""
    return Config(
        **{
            "hidden_size": 16,
            "depth": 2,
            "heads": 2,
            "chunk_size": 4,
            "vector": "aloha",
            "cameras": CameraSlots(external="top", right_wrist="wrist", left_wrist=None),
            "vision": VisionConfig(weights=None, image_size=28, hidden_size=8, depth=1, heads=2, feedforward_dim=8),
            "language": LanguageConfig(encoder="random", width=12, max_tokens=16),
            **changes,
        }
    )


def tiny_model(**changes: Any) -> Rdt:
    return Rdt(tiny(**changes))


def mock_batch(folder: Path, config: Config, places: list[tuple[int, int]]) -> tuple[Batch, RdtProcessor]:
    """A batch of (episode, step) of mock data, and the processor that made it."""
    reader = open_dataset(write_mock(folder, MOCK))
    statistics: DatasetStatistics = compute_statistics(reader, np.arange(len(reader.lengths)))
    processor = RdtProcessor(config, reader.description, statistics)
    return processor.collate(
        [build_sample(reader, episode, step, processor.window, processor.keys) for episode, step in places]
    ), processor
