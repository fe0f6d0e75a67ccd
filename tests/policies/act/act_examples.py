"""Small ACT models and samples for tests: two cameras, learnable in seconds on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vla_ft.data.sample import DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.nn.clip import ClipShape, ClipVision
from vla_ft.policies.act import Config
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.policies.base import Batch

CHUNK, ACTIONS, PROPRIO = 6, 3, 4
SIZES: dict[str, Any] = {
    "chunk_size": CHUNK,
    "hidden_dim": 32,
    "heads": 4,
    "feedforward_dim": 48,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "vae_encoder_layers": 1,
    "latent_dim": 4,
    "dropout": 0.0,
}


def small_config(**changes: Any) -> Config:
    """Our default form in small."""
    return Config(**{**SIZES, **changes})


def description(**changes: Any) -> DatasetDescription:
    """A made-up arm with two cameras of 32 x 64 pixels."""
    facts: dict[str, Any] = {
        "name": "arm",
        "cameras": {"top": (32, 64), "wrist": (32, 64)},
        "action_names": tuple(f"a{i}" for i in range(ACTIONS)),
        "action_units": ("rad",) * ACTIONS,
        "proprio_names": tuple(f"p{i}" for i in range(PROPRIO)),
        "proprio_units": ("rad",) * PROPRIO,
        "action_kind": "joint",
        "action_mode": "absolute",
        "gripper": "none",
        "fps": 50.0,
    }
    return DatasetDescription(**{**facts, **changes})


def statistics() -> DatasetStatistics:
    """Means 1, 2, ...; standard deviations 0.5, the last dimension constant; 101 steps."""

    def feature(prefix: str, width: int) -> FeatureStatistics:
        mean = np.arange(1, width + 1, dtype=np.float32)
        std = np.full(width, 0.5, dtype=np.float32)
        std[-1] = 0
        names = tuple(f"{prefix}{i}" for i in range(width))
        return FeatureStatistics(
            mean=mean, std=std, min=mean - 1, max=mean + 1, q01=mean - 1, q99=mean + 1, count=101, names=names
        )

    return DatasetStatistics(
        features={"action": feature("a", ACTIONS), "proprio": feature("p", PROPRIO)}, source_hash=""
    )


def samples(count: int = 2, seed: int = 0) -> list[Sample]:
    """Random samples; the last two steps of each chunk are padding."""
    random = np.random.default_rng(seed)
    return [
        Sample(
            observation={
                "image_top": random.integers(0, 256, (1, 32, 64, 3), dtype=np.uint8),
                "image_wrist": random.integers(0, 256, (1, 32, 64, 3), dtype=np.uint8),
                "proprio": random.normal(size=(1, PROPRIO)).astype(np.float32),
                "timestep": np.zeros(1, np.int32),
                "pad_mask": np.ones(1, bool),
            },
            action=random.normal(size=(CHUNK, ACTIONS)).astype(np.float32),
            action_pad_mask=np.arange(CHUNK) < CHUNK - 2,
            task={"language_instruction": ""},
            dataset_name="arm",
        )
        for _ in range(count)
    ]


def batch(count: int = 2, seed: int = 0) -> Batch:
    """A batch as the processor makes it, numbers of order one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(CHUNK) < CHUNK - 2
    return {
        "image_top": torch.randint(0, 256, (count, 32, 64, 3), dtype=torch.uint8, generator=generator),
        "image_wrist": torch.randint(0, 256, (count, 32, 64, 3), dtype=torch.uint8, generator=generator),
        "proprio": torch.randn(count, PROPRIO, generator=generator),
        "action": torch.randn(count, CHUNK, ACTIONS, generator=generator),
        "action_pad_mask": mask.expand(count, -1).clone(),
    }


SMALL_CLIP = ClipShape(width=24, heads=2, depth=2, out_channels=8)
DIMENSIONS = Dimensions(cameras=("top", "wrist"), action=ACTIONS, proprio=PROPRIO)


def clip_model(seed: int = 1, **changes: Any) -> Act:
    """ACT with a narrow CLIP tower of the published input size."""
    torch.manual_seed(seed)
    return Act(small_config(backbone="clip_vit_b32", **changes), DIMENSIONS, ClipVision(SMALL_CLIP)).eval()
