"""Samples to ACT batches, and actions back to robot units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vla_ft.data.normalization import MeanStd
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError
from vla_ft.policies.act.config import Config
from vla_ft.policies.base import Batch, Processor


class ActProcessor(Processor):
    """One observation, one chunk. Images stay uint8: the model scales them on its device."""

    def __init__(self, config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> None:
        for feature, names in (("action", description.action_names), ("proprio", description.proprio_names)):
            if statistics[feature].names != names:
                raise UserError(
                    f"The statistics are of {feature} dimensions {', '.join(statistics[feature].names)}; this dataset "
                    f"('{description.name}') has {', '.join(names)}. Use the statistics of the dataset itself."
                )
        self.window = WindowSpec(observation_steps=1, action_horizon=config.chunk_size)
        self.keys = ("proprio", *(IMAGE_PREFIX + camera for camera in description.cameras))
        self.statistics = statistics
        self._normalizers = {
            feature: MeanStd.of(
                statistics[feature], floor=config.std_floor, epsilon=config.std_epsilon, unbiased=config.unbiased_std
            )
            for feature in ("action", "proprio")
        }

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples into ``image_<camera>`` uint8 [B, H, W, 3], normalised ``proprio`` float32 [B, P] and, where
        the samples have actions, normalised ``action`` float32 [B, K, A] with ``action_pad_mask`` bool [B, K].
        """
        batch = {key: _stack([sample["observation"][key][-1] for sample in samples], key) for key in self.keys}
        batch["proprio"] = self._normalize("proprio", batch["proprio"])
        if "action" in samples[0]:
            batch["action"] = self._normalize("action", _stack([sample["action"] for sample in samples], "action"))
            batch["action_pad_mask"] = _stack([sample["action_pad_mask"] for sample in samples], "action_pad_mask")
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def unnormalize(self, actions: Tensor) -> np.ndarray:
        """Normalised [..., K, A] to robot units, float32."""
        return self._normalizers["action"].unnormalize(actions.detach().float().cpu().numpy())

    def _normalize(self, feature: str, values: np.ndarray) -> np.ndarray:
        width = len(self._normalizers[feature].mean)
        if values.shape[-1] != width:
            raise UserError(f"{feature} has {values.shape[-1]} dimensions, the policy's statistics have {width}.")
        return self._normalizers[feature].normalize(values)


def _stack(values: Sequence[np.ndarray], key: str) -> np.ndarray:
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        raise UserError(
            f"{key} comes in different shapes, {shapes[0]} and {shapes[1]}, and cannot form one batch. "
            "Re-record or resize the dataset so that all episodes agree."
        )
    return np.stack(values)
