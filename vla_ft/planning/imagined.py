"""A dataset and a batch that are only described: shapes as the run will see them, numbers that nobody reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vla_ft.config import RunConfig
from vla_ft.data.mock import MockConfig
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.policies.base import Batch, Processor
from vla_ft.policies.registry import load_policy
from vla_ft.training.assembly import Run
from vla_ft.training.averages import Ema
from vla_ft.training.engines import Engine
from vla_ft.training.state import TrainingState

MOCK = "mock"
INSTRUCTION = "pick up the small red block and put it into the open drawer on the left"
"""Language of imagined samples: policies pad to their own length or to the batch's longest."""


def describe(config: RunConfig) -> DatasetDescription:
    """The dataset of a run: of ``data.path`` where it can be read, as ``data.mock`` has it for mock data.

    Raises UserError as opening the dataset does.
    """
    data = config.data
    if data.path == MOCK:
        return imagine(data.mock)
    return data.open(data.path).description


def imagine(mock: MockConfig) -> DatasetDescription:
    """The description that mock demonstrations of these settings would have."""
    names = tuple(f"joint_{number}" for number in range(mock.action_dim))
    units = ("rad",) * len(names)
    proprio = names if mock.proprio_dim is None else tuple(f"proprio_{number}" for number in range(mock.proprio_dim))
    return DatasetDescription(
        name="imagined",
        cameras=dict.fromkeys(mock.cameras, mock.image_size),
        action_names=names,
        action_units=units,
        proprio_names=proprio,
        proprio_units=("rad",) * len(proprio),
        action_kind="joint",
        action_mode="absolute",
        gripper="0 closed, 1 open",
        fps=50.0,
    )


def plain_statistics(description: DatasetDescription) -> DatasetStatistics:
    """Statistics that leave numbers as they are."""
    features = {}
    for name, names in (("action", description.action_names), ("proprio", description.proprio_names)):
        zeros, ones = np.zeros(len(names), np.float32), np.ones(len(names), np.float32)
        features[name] = FeatureStatistics(
            mean=zeros, std=ones, min=-ones, max=ones, q01=-ones, q99=ones, count=2, names=names
        )
    return DatasetStatistics(features=features, source_hash="imagined")


def imagine_sample(description: DatasetDescription, processor: Processor, steps: int | None = None) -> Sample:
    """One sample of zeros, with the window that a processor asks for, or ``steps`` observation steps of it."""
    steps, horizon = steps or processor.window.observation_steps, processor.window.action_horizon
    observation: dict[str, np.ndarray] = {
        f"{IMAGE_PREFIX}{camera}": np.zeros((steps, *size, 3), np.uint8) for camera, size in description.cameras.items()
    }
    observation["proprio"] = np.zeros((steps, description.proprio_dim), np.float32)
    observation["timestep"] = np.zeros(steps, np.int32)
    observation["pad_mask"] = np.ones(steps, bool)
    return Sample(
        observation=observation,
        action=np.zeros((horizon, description.action_dim), np.float32),
        action_pad_mask=np.ones(horizon, bool),
        task={"language_instruction": processor.example_instruction or INSTRUCTION},
        dataset_name=description.name,
    )


def imagined_processor(config: RunConfig, description: DatasetDescription) -> Processor:
    """The policy's own processor, with statistics that leave numbers as they are. It needs no files."""
    policy = load_policy(config.policy)
    bare = getattr(policy, "without_files", lambda model: model)
    return policy.build_processor(bare(config.model), description, plain_statistics(description))


def collate_one(config: RunConfig, description: DatasetDescription) -> Batch:
    """A batch of one imagined sample, made by the policy's own processor. Real tensors."""
    processor = imagined_processor(config, description)
    return processor.collate([imagine_sample(description, processor)])


def widen(batch: Batch, size: int) -> Batch:
    """Empty tensors of the same types with ``size`` as first dimension; fake ones under a fake mode."""
    return {key: torch.zeros((size, *value.shape[1:]), dtype=value.dtype) for key, value in batch.items()}


def imagined_run(config: RunConfig, description: DatasetDescription, engine: Engine) -> Run:
    """What ``update`` reads of a run; it has no data. Builds the engine's optimizer and the average."""
    engine.build_optimizer()
    ema = Ema({name: engine.weights[name] for name in engine.trained}, config.ema) if config.ema else None
    nothing: Any = None
    return Run(
        state=TrainingState(config, description, plain_statistics(description), ema),
        reader=nothing,
        processor=nothing,
        split=nothing,
        dropped=nothing,
        damaged=nothing,
        places=nothing,
        training_windows=nothing,
        validation_windows=nothing,
        data_path="",
        global_batch=config.batch.per_device,
        weights="",
    )
