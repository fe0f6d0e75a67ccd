"""Small π0 models and samples for tests: one camera of 28 pixels, a vocabulary of 64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vla_ft.data.sample import DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.policies.base import Batch
from vla_ft.policies.pizero import Config, build_model, build_processor
from vla_ft.policies.pizero.model import PiZero

ACTIONS, PROPRIO, HORIZON, SIZE = 7, 8, 4, 28
SIZES: dict[str, Any] = {
    "horizon": HORIZON,
    "image_size": SIZE,
    "text_tokens": 6,
    "vision_width": 16,
    "vision_mlp": 24,
    "vision_layers": 2,
    "vision_heads": 2,
    "vlm_width": 24,
    "vlm_mlp": 32,
    "expert_width": 16,
    "expert_mlp": 24,
    "layers": 3,
    "heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "image_token": 63,
    "time_width": 8,
    "tokenizer": "stand-in",
}


def small_config(**changes: Any) -> Config:
    """Our default form in small."""
    return Config(**{**SIZES, **changes})


def description(**changes: Any) -> DatasetDescription:
    """Fractal's dimensions, one camera, an absolute gripper at the end."""
    facts: dict[str, Any] = {
        "name": "arm",
        "cameras": {"primary": (SIZE, SIZE)},
        "action_names": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        "action_units": ("",) * ACTIONS,
        "proprio_names": tuple(f"p{i}" for i in range(PROPRIO)),
        "proprio_units": ("",) * PROPRIO,
        "action_kind": "end_effector",
        "action_mode": "delta",
        "gripper": "1 open, 0 closed",
        "fps": 5.0,
        "gripper_dims": (6,),
    }
    return DatasetDescription(**{**facts, **changes})


def statistics(about: DatasetDescription | None = None) -> DatasetStatistics:
    """Quantiles at 1 and 3 around a mean of 2; deviation 0.5."""
    about = about or description()

    def feature(names: tuple[str, ...]) -> FeatureStatistics:
        ones = np.ones(len(names), dtype=np.float32)
        return FeatureStatistics(
            mean=2 * ones, std=ones / 2, min=0 * ones, max=4 * ones, q01=ones, q99=3 * ones, count=101, names=names
        )

    features = {"action": feature(about.action_names), "proprio": feature(about.proprio_names)}
    return DatasetStatistics(features=features, source_hash="")


def samples(count: int = 2, seed: int = 0, instruction: Any = "close middle drawer") -> list[Sample]:
    """Random samples in robot units; the last step of each chunk is padding."""
    random = np.random.default_rng(seed)
    return [
        Sample(
            observation={
                "image_primary": random.integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8),
                "proprio": random.normal(2, 0.5, size=(1, PROPRIO)).astype(np.float32),
                "timestep": np.zeros(1, np.int32),
                "pad_mask": np.ones(1, bool),
            },
            action=random.normal(2, 0.5, size=(HORIZON, ACTIONS)).astype(np.float32),
            action_pad_mask=np.arange(HORIZON) < HORIZON - 1,
            task={"language_instruction": instruction},
            dataset_name="arm",
        )
        for _ in range(count)
    ]


def batch(count: int = 2, seed: int = 0, **changes: Any) -> Batch:
    """A batch as the processor makes it."""
    return build_processor(small_config(**changes), description(), statistics()).collate(samples(count, seed))


def model(seed: int = 0, **changes: Any) -> PiZero:
    """A small model with fresh weights of a seed."""
    torch.manual_seed(seed)
    return build_model(small_config(**changes), description())
