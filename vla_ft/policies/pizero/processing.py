"""Samples to π0 batches, and actions back to robot units."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from vla_ft.data.normalization import Bounds, MeanStd, Normalizer, PerDataset
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError
from vla_ft.policies.base import Batch, Processor
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.tokenizer import Prompts

_EPSILON = 1e-8
IMAGE = "image"
"""Batch key of the one camera's picture."""


class PiZeroProcessor(Processor):
    """One picture, one instruction, one chunk. Pictures stay uint8: the model scales them on its device."""

    def __init__(self, config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> None:
        _refuse_other_dimensions(description, statistics)
        self.camera = IMAGE_PREFIX + next(iter(description.cameras))
        self.size = config.image_size
        self.window = WindowSpec(observation_steps=1, action_horizon=config.horizon)
        self.keys = ("proprio", self.camera)
        self.statistics = statistics
        self.prompts = Prompts(config)
        moving = ~description.is_gripper
        masks = {"action": moving if description.gripper_dims else None, "proprio": None}
        self._normalizers = {
            feature: PerDataset(statistics, feature, _Maker(config.normalization, mask))
            for feature, mask in masks.items()
        }

    def without(self, keys: Collection[str]) -> PiZeroProcessor:
        """A copy that neither reads nor collates these batch keys."""
        narrowed = copy.copy(self)
        dropped = {self.camera if key == IMAGE else key for key in keys}
        narrowed.keys = tuple(key for key in self.keys if key not in dropped)
        return narrowed

    def tokens_of(self, instruction: str) -> Sequence[int]:
        """The prompt's numbers, padding included."""
        return self.prompts(instruction).tolist()

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples into ``image`` uint8 [B, S, S, 3], ``text`` int64 [B, N], normalised ``proprio`` float32 [B, P]
        and, where the samples have actions, normalised ``action`` float32 [B, K, A] with ``action_pad_mask`` [B, K].
        """
        numbers = self._normalizers["action"].numbers(samples)
        batch = {"text": np.stack([self.prompts(sample["task"]["language_instruction"]) for sample in samples])}
        if self.camera in self.keys:
            batch[IMAGE] = np.stack([self._picture(sample) for sample in samples])
        proprio = np.stack([sample["observation"]["proprio"][-1] for sample in samples])
        batch["proprio"] = self._normalize("proprio", proprio, numbers)
        if "action" in samples[0]:
            batch["action"] = self._normalize("action", np.stack([s["action"] for s in samples]), numbers)
            batch["action_pad_mask"] = np.stack([sample["action_pad_mask"] for sample in samples])
        if self.statistics.parts:
            batch["dataset"] = numbers
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def unnormalize(self, actions: Tensor, dataset: Tensor | None = None) -> np.ndarray:
        """Normalised [B, K, A] to robot units, float32."""
        numbers = None if dataset is None else dataset.cpu().numpy()
        return self._normalizers["action"].unnormalize(actions.detach().float().cpu().numpy(), numbers)

    def _picture(self, sample: Sample) -> np.ndarray:
        picture = sample["observation"][self.camera][-1]
        if picture.shape != (self.size, self.size, 3):
            raise UserError(
                f"{self.camera} is {picture.shape[0]}x{picture.shape[1]}, this model sees {self.size}x{self.size}. "
                f"Set data.image_size=[{self.size},{self.size}], or resize what a robot sends."
            )
        return picture

    def _normalize(self, feature: str, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        width = self._normalizers[feature].width
        if values.shape[-1] != width:
            raise UserError(f"{feature} has {values.shape[-1]} dimensions, the policy's statistics have {width}.")
        return self._normalizers[feature].normalize(values, numbers)


class _Maker:
    """Builds the normaliser of a feature; workers pickle it."""

    def __init__(self, kind: str, mask: np.ndarray | None) -> None:
        self.kind, self.mask = kind, mask

    def __call__(self, statistics: FeatureStatistics) -> Normalizer:
        if self.kind == "none":
            return Bounds.of(statistics, mask=np.zeros(len(statistics.names), dtype=bool))
        if self.kind == "bounds":
            return Bounds.of(statistics, mask=self.mask)
        return MeanStd.of(statistics, epsilon=_EPSILON, mask=self.mask)


def _refuse_other_dimensions(description: DatasetDescription, statistics: DatasetStatistics) -> None:
    wanted = {"action": description.action_names, "proprio": description.proprio_names}
    for part in statistics.each().values():
        for feature, names in wanted.items():
            if part[feature].names != names:
                raise UserError(
                    f"The statistics are of {feature} dimensions {', '.join(part[feature].names)}; this dataset "
                    f"('{description.name}') has {', '.join(names)}. Use the statistics of the dataset itself."
                )
