"""Samples to RDT batches, and unified action vectors back to robot units."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError, nearest
from vla_ft.policies.base import Batch, Processor
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.language import IMAGINED, InstructionTable
from vla_ft.policies.rdt.vector import WIDTH, VectorMap, find_vector

EMPTY = ""
"""The instruction that stands for none."""


def vector_maps(config: Config, description: DatasetDescription) -> tuple[VectorMap, VectorMap]:
    """(state, action) mappings to the unified vector. Raises UserError where they do not fit the dataset."""
    chosen = find_vector(config.vector)
    state = VectorMap(chosen.state or chosen.action, chosen.state_divisors, "state")
    action = VectorMap(chosen.action, chosen.action_divisors, "action")
    dims = {"state": description.proprio_names, "action": description.action_names}
    for mapping in (state, action):
        names = dims[mapping.what]
        if len(names) != len(mapping.names):
            raise UserError(
                f"Dataset '{description.name}' has {len(names)} dimensions of {mapping.what} ({', '.join(names)}), "
                f"model.vector maps {len(mapping.names)} ({', '.join(mapping.names)}). Name a slot of the unified "
                f"vector for each with model.vector={{{mapping.what}: [...]}}; docs/rdt.md lists them."
            )
    return state, action


def check_cameras(config: Config, description: DatasetDescription) -> None:
    """Raises UserError for a camera that the dataset does not have, or one that stands in two places."""
    chosen = [camera for camera in config.cameras.in_order if camera is not None]
    for camera in chosen:
        if camera not in description.cameras:
            raise UserError(
                f"model.cameras names '{camera}', dataset '{description.name}' has "
                f"{', '.join(description.cameras) or 'no cameras'}.{nearest(camera, description.cameras)} Set "
                "model.cameras.external, right_wrist and left_wrist; null leaves a place grey."
            )
    if len(set(chosen)) < len(chosen) or not chosen:
        raise UserError(
            f"model.cameras is {', '.join(map(str, config.cameras.in_order))}. Expected at least one camera and none "
            "twice: a missing view is null."
        )


def control_rate(config: Config, fps: float) -> int:
    """Hz that the model is told of data, or of a robot, at ``fps``: the configured rate (0, unknown, is one), or it."""
    return config.control_frequency if config.control_frequency is not None else round(fps)


class RdtProcessor(Processor):
    """Two pictures of each camera, one state, one chunk, and the embedding of the instruction, found by its text.

    Pictures stay uint8 and state noise is left to the model: what is random is drawn by the trainer's generator.
    """

    reads_instructions = True

    def __init__(self, config: Config, description: DatasetDescription, statistics: DatasetStatistics) -> None:
        check_cameras(config, description)
        self.config, self.statistics = config, statistics
        self.state_map, self.action_map = vector_maps(config, description)
        self.window = WindowSpec(
            observation_steps=config.history, action_horizon=config.chunk_size, action_offset=0, surroundings=True
        )
        self.keys = ("proprio", *(IMAGE_PREFIX + camera for camera in config.cameras.in_order if camera is not None))
        self.language = InstructionTable(config.language)
        self.example_instruction = IMAGINED
        self.rate = control_rate(config, description.fps)
        """Hz that the model is told where a sample does not say its own."""
        self._means = [
            self.state_map.to_vector(part["proprio"].mean).astype(np.float32) for part in statistics.each().values()
        ]

    @property
    def reads_episodes(self) -> bool:  # type: ignore[override]
        """Only for rotations: the mean of six numbers is not that of the mean angles."""
        return self.state_map.turns

    def informed(self, reader: EpisodeReader, episodes: np.ndarray) -> RdtProcessor:
        """With the mean of the states' unified vectors over the training steps of each dataset, as published."""
        sums, counts = np.zeros((len(self._means), WIDTH)), np.zeros(len(self._means))
        for episode in episodes.tolist():
            part, own = reader.resolve(episode)
            number = self.statistics.number_of(part.description.name)
            values = part.read(own, np.arange(int(part.lengths[own])), ("proprio",))["proprio"]
            sums[number] += self.state_map.to_vector(values).sum(0)
            counts[number] += len(values)
        learned = copy.copy(self)
        seen = zip(sums, counts, self._means, strict=True)
        learned._means = [(total / n).astype(np.float32) if n else given for total, n, given in seen]
        return learned

    def require(self, instructions: Collection[str]) -> None:
        """Raises UserError naming instructions that have no embedding; the empty one is needed as well."""
        self.language.lacking([*sorted(instructions), EMPTY])

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See ``Rdt`` for the keys. ``action`` is there where the samples have one."""
        numbers = [self.statistics.number_of(sample["dataset_name"]) for sample in samples]
        batch = self._states(samples)
        batch["state_mean"] = np.stack([self._means[number] for number in numbers])
        batch["ctrl_freq"] = np.array([self._rate_of(sample) for sample in samples], dtype=np.int64)
        batch["image_valid"] = np.stack([self._valid(sample) for sample in samples])
        for key in self.keys:
            if key.startswith(IMAGE_PREFIX):
                batch[key] = _stack([sample["observation"][key] for sample in samples], key)
        if "action" in samples[0]:
            vectors = [self.action_map.to_vector(sample["action"]) for sample in samples]
            batch["action"] = np.stack(vectors).astype(np.float32)
            batch["action_pad_mask"] = np.stack([sample["action_pad_mask"] for sample in samples])
        if self.statistics.parts:
            batch["dataset"] = np.array(numbers, dtype=np.int64)
        return {key: torch.from_numpy(value) for key, value in batch.items()} | self._language(samples)

    def unnormalize(self, actions: Tensor, dataset: Tensor | None = None) -> np.ndarray:
        """Unified [B, H, 128] to robot units, float32 [B, H, A]."""
        return self.action_map.from_vector(actions.detach().float().cpu().numpy())

    def by_action(self, errors: np.ndarray) -> np.ndarray:
        """See ``Processor.by_action``: errors of the places that this robot uses."""
        return self.action_map.errors_by_name(errors)

    def _states(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """State, and the spread of its episode; without the episode (on a robot) the spread is 0 and the norm 1."""
        states = [self.state_map.to_vector(sample["observation"]["proprio"][-1:]) for sample in samples]
        spread, norm = np.zeros((2, len(samples), states[0].shape[-1]))
        norm += self.state_map.mask
        for row, sample in enumerate(samples):
            whole = sample["observation"].get("episode_proprio")
            if whole is not None:
                vectors = self.state_map.to_vector(whole)
                spread[row], norm[row] = vectors.std(0), np.sqrt((vectors**2).mean(0))
        found = {"state": np.stack(states), "state_std": spread, "state_norm": norm}
        found |= {f"{one.what}_mask": np.tile(one.mask, (len(samples), 1)) for one in (self.state_map, self.action_map)}
        return {key: value.astype(np.float32) for key, value in found.items()}

    def _rate_of(self, sample: Sample) -> int:
        told = sample["observation"].get("control_frequency")
        return self.rate if told is None else control_rate(self.config, float(told))

    def _valid(self, sample: Sample) -> np.ndarray:
        """bool [T, 3]: pictures that exist, and were recorded before this step."""
        present = np.array([camera is not None for camera in self.config.cameras.in_order])
        return np.asarray(sample["observation"]["pad_mask"], dtype=bool)[:, None] & present

    def _language(self, samples: Sequence[Sample]) -> Batch:
        """Embeddings padded with zeros to the longest, their mask, and that of the empty instruction."""
        found = [self.language.get(sample["task"]["language_instruction"]) for sample in samples]
        empty = self.language.get(IMAGINED if self._imagined(samples) else EMPTY)
        longest = max(len(empty), *(len(tokens) for tokens in found))
        lengths = torch.tensor([len(tokens) for tokens in found])
        return {
            "lang_tokens": torch.stack([F.pad(tokens, (0, 0, 0, longest - len(tokens))) for tokens in found]),
            "lang_mask": torch.arange(longest) < lengths[:, None],
            "lang_empty": empty.expand(len(samples), *empty.shape).contiguous(),
        }

    def _imagined(self, samples: Sequence[Sample]) -> bool:
        return samples[0]["task"]["language_instruction"] == IMAGINED


def _stack(values: Sequence[np.ndarray], key: str) -> np.ndarray:
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        raise UserError(
            f"{key} comes in different shapes, {shapes[0]} and {shapes[1]}, and cannot form one batch. Bring frames to "
            "one size with data.image_size=[HEIGHT,WIDTH]."
        )
    return np.stack(values)
