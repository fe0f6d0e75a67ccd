"""Samples to ACT batches, and actions back to robot units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vla_ft.data.normalization import MeanStd, PerDataset
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError
from vla_ft.policies.act.config import Config
from vla_ft.policies.base import Batch, Processor


class ActProcessor(Processor):
    """One observation, or a window of them, and one chunk. Images stay uint8: the model scales them on its device."""

    def __init__(self, config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> None:
        wanted = {"action": description.action_names, "proprio": description.proprio_names}
        if description.environment_names:
            wanted["env_state"] = description.environment_names
        for part in statistics.each().values():
            for feature, names in wanted.items():
                if part[feature].names != names:
                    raise UserError(
                        f"The statistics are of {feature} dimensions {', '.join(part[feature].names)}; this dataset "
                        f"('{description.name}') has {', '.join(names)}. Use the statistics of the dataset itself."
                    )
        steps = config.observation_steps
        self.window = WindowSpec(observation_steps=steps, action_horizon=config.chunk_size)
        numbers = {"proprio": description.proprio_names, "env_state": description.environment_names}
        self.keys = (
            *(key for key, dimensions in numbers.items() if dimensions),
            *(IMAGE_PREFIX + camera for camera in description.cameras),
        )
        self.statistics = statistics

        def make(feature: FeatureStatistics) -> MeanStd:
            return MeanStd.of(feature, floor=config.std_floor, epsilon=config.std_epsilon, unbiased=config.unbiased_std)

        self._normalizers = {feature: PerDataset(statistics, feature, make) for feature in wanted}

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples into ``image_<camera>`` uint8 [B, H, W, 3], normalised ``proprio`` float32 [B, P] and, where
        the samples have actions, normalised ``action`` float32 [B, K, A] with ``action_pad_mask`` bool [B, K].

        Policies of several observation steps get them all, [B, T, ...], with ``observation_pad_mask`` bool [B, T].
        """
        window = self.window.observation_steps > 1
        observed = [sample["observation"] for sample in samples]
        batch = {key: _stack([one[key] if window else one[key][-1] for one in observed], key) for key in self.keys}
        if window:
            batch["observation_pad_mask"] = _stack([one["pad_mask"] for one in observed], "pad_mask")
        numbers = self._normalizers["action"].numbers(samples)
        for key in ("proprio", "env_state"):
            if key in batch:
                batch[key] = self._normalize(key, batch[key], numbers)
        if "action" in samples[0]:
            actions = _stack([sample["action"] for sample in samples], "action")
            batch["action"] = self._normalize("action", actions, numbers)
            batch["action_pad_mask"] = _stack([sample["action_pad_mask"] for sample in samples], "action_pad_mask")
        if self.statistics.parts:
            batch["dataset"] = numbers
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def unnormalize(self, actions: Tensor, dataset: Tensor | None = None) -> np.ndarray:
        """Normalised [B, K, A] to robot units, float32."""
        numbers = None if dataset is None else dataset.cpu().numpy()
        return self._normalizers["action"].unnormalize(actions.detach().float().cpu().numpy(), numbers)

    def _normalize(self, feature: str, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        width = self._normalizers[feature].width
        if values.shape[-1] != width:
            raise UserError(f"{feature} has {values.shape[-1]} dimensions, the policy's statistics have {width}.")
        return self._normalizers[feature].normalize(values, numbers)


def _stack(values: Sequence[np.ndarray], key: str) -> np.ndarray:
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        raise UserError(
            f"{key} comes in different shapes, {shapes[0]} and {shapes[1]}, and cannot form one batch. "
            "Re-record or resize the dataset so that all episodes agree."
        )
    return np.stack(values)
