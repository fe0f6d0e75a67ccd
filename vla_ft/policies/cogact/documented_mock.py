"""The random samples of the published mock fine-tuning, as its document states them, and their way into this tool.

``FinetuneDataset`` of LXZgogoDuck/CogACT_finetune at 9c88fe4: the same numbers from the same seed. Instructions and the
order of samples, which it draws without a seed, are drawn from the seed as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_ft.data.sample import DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.prompts import Prompts
from vla_ft.policies.cogact.vision import MEAN_STD

NAME = "custom_finetune"
STEPS, RECORDED, PROPRIO_CHUNK, ACTION_CHUNK, WIDTH, SIZE = 10, 20, 8, 15, 7, 224
"""Samples of a trajectory, its recorded steps, steps of a proprioception and of an action chunk, dimensions, pixels."""
INSTRUCTIONS = ("pick up the cup", "open the drawer", "push the block to the left", "place the sponge in the bowl")
_ACTION = np.array([0.05, 0.05, 0.05, 0.1, 0.1, 0.1])
Documented = dict[str, Any]
"""``observation`` (``image_primary`` float32 [8, 224, 224, 3], ``image_wrist`` the same or None, ``proprio`` [8, 7]),
``action`` [15, 7], both normalised and float64, ``task.language_instruction``."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What the published code draws for one trajectory, float32, in this order."""

    joint: np.ndarray
    proprio: np.ndarray
    action: np.ndarray
    joint_chunk: np.ndarray
    proprio_chunk: np.ndarray
    action_chunk: np.ndarray
    instruction: str = ""

    @classmethod
    def draw(cls, random: np.random.RandomState, instruction: str) -> Trajectory:
        """The next trajectory of a generator."""

        def uniform(bound: float, *shape: int) -> np.ndarray:
            return random.uniform(-bound, bound, shape).astype(np.float32)

        return cls(
            joint=uniform(1, RECORDED, WIDTH),
            proprio=uniform(1, RECORDED, WIDTH),
            action=uniform(0.05, RECORDED, WIDTH),
            joint_chunk=uniform(1, STEPS, PROPRIO_CHUNK, WIDTH),
            proprio_chunk=uniform(1, STEPS, PROPRIO_CHUNK, WIDTH),
            action_chunk=uniform(0.05, STEPS, ACTION_CHUNK, WIDTH),
            instruction=instruction,
        )


@dataclass
class DocumentedMock:
    """``mock_data_num_trajs`` trajectories; a pass gives as many samples, each of a trajectory and step at random."""

    mock_data_num_trajs: int = 64
    seed: int = 42
    wrist: bool = True
    trajectories: list[Trajectory] = field(init=False)

    def __post_init__(self) -> None:
        random, words = np.random.RandomState(self.seed), np.random.default_rng(self.seed)
        told = [INSTRUCTIONS[i] for i in words.integers(len(INSTRUCTIONS), size=self.mock_data_num_trajs)]
        self.trajectories = [Trajectory.draw(random, instruction) for instruction in told]

    def __len__(self) -> int:
        return len(self.trajectories)

    def __iter__(self) -> Iterator[Documented]:
        random = np.random.default_rng([self.seed, 1])
        trajectories, steps = (random.integers(limit, size=len(self)) for limit in (len(self), STEPS))
        for trajectory, step in zip(trajectories, steps, strict=True):
            yield self.sample(int(trajectory), int(step))

    def sample(self, trajectory: int, step: int) -> Documented:
        """The documented sample of a trajectory's step: white pictures, chunks normalised without a clip."""
        drawn, white = self.trajectories[trajectory], torch.ones(PROPRIO_CHUNK, SIZE, SIZE, 3)
        return {
            "observation": {
                "image_primary": white,
                "image_wrist": white.clone() if self.wrist else None,
                "proprio": _normalize(drawn.proprio_chunk[step], *self.bounds("proprio")),
            },
            "action": _normalize(drawn.action_chunk[step], *self.bounds("action")),
            "task": {"language_instruction": drawn.instruction},
        }

    def bounds(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """q01 and q99, float64 [7], which the published code overwrites by hand, grippers with 0 and 1,000."""
        values = np.concatenate([getattr(one, feature) for one in self.trajectories])
        low, high = (np.quantile(values, share, axis=0).astype(np.float64) for share in (0.01, 0.99))
        low[-1], high[-1] = 0, 1000
        if feature == "action":
            low[:-1], high[:-1] = -_ACTION, _ACTION
        else:
            low[3:-1], high[3:-1] = -3.15, 3.15
        return low, high

    def statistics(self) -> DatasetStatistics:
        """Of the actions, with these bounds: what a processor of this data takes."""
        values = np.concatenate([one.action for one in self.trajectories])
        low, high = (bound.astype(np.float32) for bound in self.bounds("action"))
        numbers = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
        action = FeatureStatistics(**numbers, q01=low, q99=high, count=len(values), names=describe().action_names)
        return DatasetStatistics(features={"action": action}, source_hash="", episodes=len(self))


def describe() -> DatasetDescription:
    """What the mock's numbers would mean: changes of the end effector's pose, and a gripper."""
    return DatasetDescription(
        name=NAME,
        cameras={"primary": (SIZE, SIZE)},
        action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        action_units=("m", "m", "m", "rad", "rad", "rad", ""),
        proprio_names=(),
        proprio_units=(),
        action_kind="end_effector",
        action_mode="delta",
        gripper="unknown",
        fps=0.0,
        gripper_dims=(6,),
    )


def as_sample(documented: Documented, mock: DocumentedMock, horizon: int) -> Sample:
    """A documented sample as every dataset here gives them: the current frame, and a chunk in robot units.

    The document's chunk has 15 steps, the published head's 16: what is missing counts as past the episode's end. Wrist
    and proprioception are left out, as the model sees neither.
    """
    low, high = mock.bounds("action")
    action = ((documented["action"] + 1) / 2 * (high - low) + low)[:horizon]
    steps = np.minimum(np.arange(horizon), len(action) - 1)
    frame = (documented["observation"]["image_primary"][:1] * 255).round().to(torch.uint8).numpy()
    return Sample(
        observation={
            "image_primary": frame,
            "timestep": np.zeros(1, dtype=np.int32),
            "pad_mask": np.ones(1, dtype=bool),
        },
        action=action[steps].astype(np.float32),
        action_pad_mask=np.arange(horizon) < len(action),
        task={"language_instruction": documented["task"]["language_instruction"]},
        dataset_name=NAME,
    )


class DocumentedCollator:
    """The document's batch, with CogACT's own tokens and pixels where its code had BERT's and none normalised.

    For code that was written against the document; training here collates ``as_sample`` with the policy's processor.
    """

    def __init__(self, config: Config) -> None:
        self.prompts = Prompts(config)

    def __call__(self, samples: Sequence[Documented]) -> dict[str, Any]:
        """``input_ids`` and ``attention_mask`` int64 [B, L]; ``pixel_values`` of ``dino``, ``siglip`` and ``wrist``
        (where there is one) float32 [B, T, 3, H, W]; ``proprio``, ``actions`` and ``labels`` float32 [B, T, 7];
        ``action_masks`` float32 [B, T], all ones."""
        tokens, mask = self.prompts.batch([one["task"]["language_instruction"] for one in samples])
        actions = torch.stack([torch.as_tensor(one["action"]) for one in samples]).float()
        proprio = torch.stack([torch.as_tensor(one["observation"]["proprio"]) for one in samples]).float()
        return {
            "input_ids": tokens,
            "attention_mask": mask.long(),
            "pixel_values": _pixels([one["observation"] for one in samples]),
            "proprio": proprio,
            "actions": actions,
            "action_masks": torch.ones(actions.shape[:2]),
            "labels": actions.clone(),
        }


def _pixels(observations: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    primary = torch.stack([one["image_primary"] for one in observations]).movedim(-1, 2)
    values = {name: _standard(primary, name) for name in MEAN_STD}
    if observations[0]["image_wrist"] is not None:
        wrist = torch.stack([one["image_wrist"] for one in observations]).movedim(-1, 2)
        values["wrist"] = _standard(wrist, "siglip")
    return values


def _standard(images: Tensor, tower: str) -> Tensor:
    mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in MEAN_STD[tower])
    return (images - mean) / std


def _normalize(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return 2 * (values - low) / (high - low) - 1
