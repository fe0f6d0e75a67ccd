"""A trained policy as its users see it: observation and instruction in, action chunk out, both in robot units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_ft.checkpoints import STATISTICS, find_checkpoint, verify
from vla_ft.config import DataConfig, ExecutionConfig, InitConfig, RunConfig, check
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription, Sample
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.deployment.weights import build_plain, load_trained, read_facts
from vla_ft.devices import choose_device
from vla_ft.errors import UserError
from vla_ft.policies.base import Batch, Model, Processor
from vla_ft.policies.compiling import compile_blocks
from vla_ft.policies.published import Published, open_published, open_published_file
from vla_ft.policies.registry import load_policy

Precision = Literal["run", "fp32", "bf16"]
"""``run``: what the run computed in, bfloat16 under autocast for all but ``fp32``; the others whatever it was."""
Held = Literal["fp32", "bf16"]
"""How weights are held: float32, in which those of a run that kept them in bfloat16 are exact, or bfloat16, which
halves the memory. Buffers stay as they are."""
TARGETS = ("action", "action_pad_mask")
"""Batch keys that a model is never shown when it predicts."""


class Predictor:
    """A policy with its processor on one device. Without statistics there is none: ``load`` refuses."""

    def __init__(
        self,
        config: RunConfig,
        description: DatasetDescription,
        processor: Processor,
        model: Model,
        device: torch.device,
        precision: Precision = "run",
        published: Published | None = None,
    ) -> None:
        self.config, self.description, self.processor = config, description, processor
        self.model, self.device = model.to(device).eval(), device
        trained_in: Literal["fp32", "bf16"] = "fp32" if config.precision == "fp32" else "bf16"
        self.precision: Literal["fp32", "bf16"] = trained_in if precision == "run" else precision
        self.published = published
        """Where the policy is somebody else's folder: what it says of itself."""

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        device: str = "cpu",
        dataset: str | None = None,
        precision: Precision = "run",
        *,
        held: Held = "fp32",
        compiled: bool = False,
        statistics: Path | None = None,
        camera: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """Read a checkpoint folder, or the latest one of a run folder; averaged weights are used when there are any.
        A published policy is read as it is: LeRobot's ``act`` folders, of either generation, and open-pi-zero's
        ``step*.pt``, which needs ``statistics`` (the JSON file of its training data), takes what its ``camera`` is
        called (``primary`` where it is not said) and ``settings`` of ``model`` that it does not say.

        ``dataset``: the one of a mixture whose robot it will drive (OpenVLA's ``unnorm_key``), at that one's rate.
        ``compiled``: by ``torch.compile``, block by block; the first predictions are slow. Raises UserError when the
        checkpoint is damaged or incomplete, where a mixture's dataset is not named, where nothing can be compiled, and
        for ``statistics``, ``camera`` or ``settings`` of a policy that says its own.
        """
        if held == "bf16" and precision == "fp32":
            raise UserError("Weights in bfloat16 compute in bfloat16: leave out precision=fp32, or hold them in fp32.")
        precision = "bf16" if held == "bf16" else precision
        predictor = cls._read(checkpoint, device, dataset, precision, held, statistics, camera, settings or {})
        if compiled:
            compile_blocks(predictor.model, predictor.device)
        return predictor

    @classmethod
    def _read(
        cls,
        checkpoint: Path,
        device: str,
        dataset: str | None,
        precision: Precision,
        held: Held,
        statistics_file: Path | None,
        camera: str | None,
        settings: Mapping[str, Any],
    ) -> Predictor:
        given = [f"model.{name}" for name in settings]
        given += [name for name, value in (("statistics", statistics_file), ("camera", camera)) if value is not None]
        if (published := open_published(checkpoint)) is not None:
            _refuse_given(checkpoint, given)
            return cls._of(published, device, precision, held)
        named = "primary" if camera is None else camera
        if (published := open_published_file(checkpoint, statistics_file, named, settings)) is not None:
            return cls._of(published, device, precision, held)
        _refuse_given(checkpoint, given)
        path = find_checkpoint(checkpoint)
        verify(path)
        config, description = read_facts(path)
        statistics = DatasetStatistics.load(path / STATISTICS).of(dataset)
        description = description.of(dataset)
        policy = load_policy(config.policy)
        model = hold(build_plain(config, description), held)
        load_trained(model, path, config)
        processor = policy.build_processor(config.model, description, statistics)
        return cls(config, description, processor, model, choose_device(device), precision)

    @classmethod
    def _of(cls, published: Published, device: str, precision: Precision, held: Held) -> Predictor:
        policy, folder = load_policy(published.policy), str(published.folder)
        config = RunConfig(
            recipe=published.layout,
            policy=published.policy,
            data=_data(published),
            steps=1,
            output=folder,
            init=InitConfig(path=folder, layout=published.layout),
            model=check(policy.Config, published.settings, f"the settings of {folder}", prefix="model."),
            execution=_execution(published),
        )
        with torch.device("meta" if published.mapped else "cpu"):
            model = hold(policy.build_model(config.model, published.description), held)
        policy.load_weights(model, folder, published.layout, assign=published.mapped)
        processor = policy.build_processor(config.model, published.description, published.statistics)
        return cls(config, published.description, processor, model, choose_device(device), precision, published)

    def our_names(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """An observation under our keys; a published policy's robot may say ``observation.state`` and so on."""
        if self.published is None:
            return observation
        renames, our_key = self.published.renames, getattr(load_policy(self.published.policy), "our_key", str)
        features = {renames.get(name, name): value for name, value in observation.items()}
        return {our_key(name) if "." in name else name: value for name, value in features.items()}

    def predict(self, observation: dict[str, np.ndarray], instruction: str = "") -> np.ndarray:
        """Action chunk float32 [horizon, A] in robot units.

        ``observation``: ``proprio`` float [P] or [t, P] and ``image_<camera>`` uint8 [H, W, 3] or [t, H, W, 3] for
        every camera of the policy; t is its observation window, oldest first, or fewer steps where the episode has no
        more yet: all keys alike. A published policy takes its publisher's names as well. Raises UserError.
        """
        return self.predict_samples([self.sample_of(observation, instruction)])[0]

    def sample_of(self, observation: dict[str, np.ndarray], instruction: str = "") -> Sample:
        """The sample that ``predict`` makes of an observation; its actions are blank."""
        window, observation = self.processor.window, self.our_names(observation)
        arrays = {key: self._checked(key, observation) for key in self.processor.keys}
        counts = {key: len(value) for key, value in arrays.items()}
        seen, steps = max(counts.values()), window.observation_steps
        if len(set(counts.values())) > 1:
            raise UserError(f"The observation has different numbers of steps: {counts}. Give the same of every key.")
        # As in training: steps before the episode repeat the first one, and are marked.
        first = [0] * (steps - seen) + list(range(seen))
        return Sample(
            observation={
                **{key: value[first] for key, value in arrays.items()},
                "timestep": np.asarray(first, dtype=np.int32),
                "pad_mask": np.arange(steps) >= steps - seen,
            },
            action=np.zeros((window.action_horizon, self.description.action_dim), dtype=np.float32),
            action_pad_mask=np.zeros(window.action_horizon, dtype=bool),
            task={"language_instruction": instruction},
            dataset_name=self.description.name,
        )

    def predict_samples(self, samples: Sequence[Sample]) -> np.ndarray:
        """Action chunks float32 [n, horizon, A] in robot units for samples as a dataset gives them."""
        return self.processor.unnormalize(self.predict_normalized(samples)[0])

    @torch.no_grad()
    def predict_normalized(self, samples: Sequence[Sample]) -> tuple[Tensor, Batch]:
        """Normalised action chunks float32 [n, horizon, A], and the batch. Its targets are taken out for the model."""
        batch = {key: value.to(self.device) for key, value in self.processor.collate(samples).items()}
        observed = {key: value for key, value in batch.items() if key not in TARGETS}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            chunks = self.model.sample(observed)
        return chunks.float(), batch

    def _checked(self, key: str, observation: dict[str, np.ndarray]) -> np.ndarray:
        if key not in observation:
            raise UserError(f"The observation has no '{key}'. This policy needs: {', '.join(self.processor.keys)}.")
        value = np.asarray(observation[key])
        image = key.startswith(IMAGE_PREFIX)
        if value.ndim == (3 if image else 1):
            value = value[None]
        steps = min(max(1, len(value)), self.processor.window.observation_steps)
        if image:
            expected: tuple[int, ...] = (steps, *self.description.cameras[key.removeprefix(IMAGE_PREFIX)], 3)
        elif key == "env_state":
            expected = (steps, len(self.description.environment_names))
        else:
            expected = (steps, self.description.proprio_dim)
        if value.shape != expected or (image and value.dtype != np.uint8):
            raise UserError(
                f"'{key}' is {value.dtype} {value.shape}, expected {'uint8' if image else 'float32'} {expected}."
            )
        return value if image else value.astype(np.float32)


def hold(model: Model, held: Held) -> Model:
    """The model with its parameters in that type, in place."""
    if held == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _refuse_given(checkpoint: Path, given: Sequence[str]) -> None:
    if given:
        raise UserError(
            f"{checkpoint} is no file of published weights: statistics and model settings, and what the camera is "
            f"called, are of those alone (here: {', '.join(given)}). A run of ours and LeRobot's folders have their "
            "own. Leave them out."
        )


def _execution(published: Published) -> ExecutionConfig:
    """How a published policy's chunks are executed by its own settings."""
    if published.ensemble is None:
        return ExecutionConfig(steps=published.actions_per_chunk)
    return ExecutionConfig(temporal_ensemble=True, ensemble_coefficient=published.ensemble)


def _data(published: Published) -> DataConfig:
    """How a dataset is read for a published policy: as it is stored, or the policy's cameras at their size."""
    if published.image_size is None:
        return DataConfig(path=str(published.folder))
    cameras = tuple(published.description.cameras)
    return DataConfig(path=str(published.folder), cameras=cameras, image_size=published.image_size)
