"""Samples to CogACT batches, and actions back to robot units."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vla_ft.data.chunks import neutral_padding
from vla_ft.data.normalization import Bounds, PerDataset
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError, unknown
from vla_ft.policies.base import Batch, Processor
from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.prompts import Prompts

IMAGE = "image"
"""Batch key of the picture."""
OPEN_ABOVE = 0.5
"""A gripper command at least this is open (1), below closed (0), as published."""


class CogActProcessor(Processor):
    """One picture, one instruction, one chunk. No proprioception: the published model has none."""

    def __init__(self, config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> None:
        for part in statistics.each().values():
            if part["action"].names != description.action_names:
                raise UserError(
                    f"The statistics are of action dimensions {', '.join(part['action'].names)}; this dataset "
                    f"('{description.name}') has {', '.join(description.action_names)}. Use the dataset's own."
                )
        self.camera = IMAGE_PREFIX + find_camera(config, description)
        self.size = config.image_size
        self.window = WindowSpec(observation_steps=1, action_horizon=config.horizon)
        self.keys = (self.camera,)
        self.statistics = statistics
        self.prompts = Prompts(config)
        self.gripper = description.is_gripper
        # What holds still past an episode's end: grippers, and everything where actions are no increments.
        self.absolute = self.gripper | (description.action_mode != "delta")
        self._normalizer = PerDataset(statistics, "action", _Maker(~self.gripper))

    def without(self, keys: Collection[str]) -> CogActProcessor:
        """A copy that neither reads nor collates these batch keys."""
        narrowed = copy.copy(self)
        narrowed.keys = () if IMAGE in keys else self.keys
        return narrowed

    def tokens_of(self, instruction: str) -> Sequence[int]:
        """The prompt's numbers, marks included. Raises UserError for a prompt over the limit."""
        return self.prompts(instruction)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples into ``image`` uint8 [B, S, S, 3], ``tokens`` int64 [B, L] and ``token_mask`` bool [B, L],
        padded on the right to the longest; where the samples have actions, ``action`` float32 [B, T, A] normalised with
        ``action_pad_mask`` bool [B, T]. Steps past the end do not move.
        """
        numbers = self._normalizer.numbers(samples)
        batch: Batch = {}
        if self.keys:
            batch[IMAGE] = torch.from_numpy(np.stack([self._picture(sample) for sample in samples]))
            told = [sample["task"]["language_instruction"] for sample in samples]
            batch["tokens"], batch["token_mask"] = self.prompts.batch(told)
        if "action" in samples[0]:
            real = np.stack([sample["action_pad_mask"] for sample in samples])
            batch["action"] = torch.from_numpy(self._normalize(np.stack([s["action"] for s in samples]), real, numbers))
            batch["action_pad_mask"] = torch.from_numpy(real)
        if self.statistics.parts:
            batch["dataset"] = torch.from_numpy(numbers)
        return batch

    def unnormalize(self, actions: Tensor, dataset: Tensor | None = None) -> np.ndarray:
        """Normalised [B, T, A] to robot units, float32: clipped to [-1, 1], grippers to 0 or 1, then scaled."""
        values = commands(actions.detach().float().cpu().numpy(), self.gripper)
        return self._normalizer.unnormalize(values, None if dataset is None else dataset.cpu().numpy())

    def _picture(self, sample: Sample) -> np.ndarray:
        """The current frame as the model's square."""
        picture = sample["observation"][self.camera][-1]
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise UserError(
                f"{self.camera} is {picture.dtype} {picture.shape}; CogACT sees RGB, uint8 [height, width, 3]."
            )
        return squeezed(picture, self.size)

    def _normalize(self, actions: np.ndarray, real: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if actions.shape[-1] != self._normalizer.width:
            raise UserError(
                f"action has {actions.shape[-1]} dimensions, the policy's statistics have {self._normalizer.width}."
            )
        normalized = self._normalizer.normalize(actions, numbers)
        for row, number in enumerate(numbers):
            member = self._normalizer.members[number if len(self._normalizer.members) > 1 else 0]
            assert isinstance(member, Bounds)
            normalized[row] = neutral_padding(normalized[row], real[row], member, self.absolute)
        return normalized


def commands(actions: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """Predicted actions float32 [..., A] clipped to [-1, 1]; where ``gripper`` bool [A] is true, 0 or 1."""
    clipped = np.clip(actions, -1, 1)
    return np.where(gripper, (clipped >= OPEN_ABOVE).astype(np.float32), clipped)


def squeezed(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] to [size, size, 3]: bicubic with antialias, as published ("resize-naive")."""
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def find_camera(config: Config, description: DatasetDescription) -> str:
    """The camera that the model sees. Raises UserError where there is none, none of the name asked for, or a choice."""
    if not description.cameras:
        raise UserError(f"Dataset '{description.name}' has no cameras; CogACT needs one.")
    if config.camera is None and len(description.cameras) > 1:
        raise UserError(
            f"Dataset '{description.name}' has {len(description.cameras)} cameras ({', '.join(description.cameras)}), "
            f"CogACT sees one. Choose it with model.camera={next(iter(description.cameras))}."
        )
    if config.camera is None:
        return next(iter(description.cameras))
    if config.camera not in description.cameras:
        raise unknown("camera", config.camera, description.cameras)
    return config.camera


class _Maker:
    """Builds a dataset's normaliser; workers pickle it."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = None if mask.all() else mask

    def __call__(self, statistics: FeatureStatistics) -> Bounds:
        return Bounds.of(statistics, mask=self.mask, zero_constant=True)
