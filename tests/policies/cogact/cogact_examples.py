"""Small CogACT models, samples and published files for tests: one camera, the stand-in tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_ft.data.published_statistics import to_openvla
from vla_ft.data.sample import DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.policies.base import Batch
from vla_ft.policies.cogact import Config, build_model, build_processor
from vla_ft.policies.cogact.layouts import published_name
from vla_ft.policies.cogact.model import CogAct

ACTIONS, HORIZON, SIZE = 7, 4, 28


def small_config(**changes: Any) -> Config:
    """The size of mock runs with chunks of four."""
    facts: dict[str, Any] = {
        "size": "mock",
        "action_model_type": "DiT-mock",
        "tokenizer": "stand-in",
        "image_size": SIZE,
        "future_action_window_size": HORIZON - 1,
        "repeated_diffusion_steps": 3,
    }
    return Config(**{**facts, **changes})


def description(**changes: Any) -> DatasetDescription:
    """Seven relative actions, the last an absolute gripper."""
    facts: dict[str, Any] = {
        "name": "arm",
        "cameras": {"primary": (SIZE, SIZE)},
        "action_names": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        "action_units": ("",) * ACTIONS,
        "proprio_names": (),
        "proprio_units": (),
        "action_kind": "end_effector",
        "action_mode": "delta",
        "gripper": "1 open, 0 closed",
        "fps": 5.0,
        "gripper_dims": (6,),
    }
    return DatasetDescription(**{**facts, **changes})


def statistics(about: DatasetDescription | None = None, **changes: Any) -> DatasetStatistics:
    """Quantiles at 1 and 3."""
    names = (about or description()).action_names
    ones = np.ones(len(names), dtype=np.float32)
    facts: dict[str, Any] = {"mean": 2 * ones, "std": ones / 2, "min": 0 * ones, "max": 4 * ones, "q01": ones}
    feature = FeatureStatistics(**{**facts, "q99": 3 * ones, "count": 101, "names": names, **changes})
    return DatasetStatistics(features={"action": feature}, source_hash="")


def samples(count: int = 2, seed: int = 0, instruction: str = "close middle drawer", width: int = ACTIONS) -> Any:
    """Random samples in robot units; the last step of each chunk lies past the episode's end."""
    random = np.random.default_rng(seed)
    return [
        Sample(
            observation={
                "image_primary": random.integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8),
                "timestep": np.zeros(1, np.int32),
                "pad_mask": np.ones(1, bool),
            },
            action=random.normal(2, 0.5, size=(HORIZON, width)).astype(np.float32),
            action_pad_mask=np.arange(HORIZON) < HORIZON - 1,
            task={"language_instruction": instruction + " now" * number},
            dataset_name="arm",
        )
        for number in range(count)
    ]


def batch(count: int = 2, seed: int = 0, **changes: Any) -> Batch:
    """A batch as the processor makes it; its prompts have different lengths."""
    return build_processor(small_config(**changes), description(), statistics()).collate(samples(count, seed))


def model(seed: int = 0, **changes: Any) -> CogAct:
    """A small model whose last layer is not zero, as a trained one's is not."""
    torch.manual_seed(seed)
    one = build_model(small_config(**changes), description())
    torch.nn.init.normal_(one.head.final_layer.linear.weight, std=0.2)
    return one


def published(one: CogAct) -> dict[str, dict[str, Tensor]]:
    """The weights of a model as a published file groups them."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in one.state_dict().items():
        part, _, rest = published_name(name).partition(".")
        parts.setdefault(part, {})[rest] = value.clone()
    return parts


def publish(folder: Path, one: CogAct, parts: dict[str, Any] | None = None, names: tuple[str, ...] = ("arm",)) -> Path:
    """A published run's folder; returns its ``.pt``."""
    (folder / "checkpoints").mkdir(parents=True)
    file = folder / "checkpoints" / "CogACT-Tiny.pt"
    torch.save({"model": published(one) if parts is None else parts}, file)
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "mock"}}))
    entries = {name: to_openvla(statistics(), {name: description()})[name] for name in names}
    (folder / "dataset_statistics.json").write_text(json.dumps(entries))
    return file
