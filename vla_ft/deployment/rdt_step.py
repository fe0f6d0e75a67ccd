"""RDT on a two-armed robot, with the interface of the published ``agilex_model.py``: ``step`` from raw robot units."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_ft.data.sample import DatasetDescription
from vla_ft.deployment.predictor import Precision, Predictor
from vla_ft.deployment.rdt_inputs import Picture, joints_of, pictures_of, tokens_of
from vla_ft.devices import choose_device
from vla_ft.errors import UserError
from vla_ft.policies.base import Batch
from vla_ft.policies.rdt.checkpoint import load_weights
from vla_ft.policies.rdt.conditions import of_batch
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.language import InstructionTable
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.processing import control_rate
from vla_ft.policies.rdt.vector import TWO_ARMS, VectorMap, find_vector
from vla_ft.weights.places import resolve

PUBLISHED_RATE = 25
"""Hz of the published robot."""
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class RoboticDiffusionTransformerModel:
    """A chunk of joint commands from joints, six pictures and an instruction.

    Joints are [left 6, left gripper, right 6, right gripper] in the robot's own units: grippers are scaled on the way
    in and out by the configuration's divisors. The text encoder is never loaded: an instruction is an embedding, or a
    text that ``vla-ft embed-language`` has embedded.
    """

    def __init__(
        self,
        model: Rdt,
        *,
        control_frequency: int | None = None,
        device: str = "auto",
        precision: Literal["fp32", "bf16"] | None = None,
        embeddings: Path | str | None = None,
        description: DatasetDescription | None = None,
    ) -> None:
        """``control_frequency``: Hz that the model is told, 0 for unknown; None takes its configuration's, else 25.

        ``precision``: what float32 weights compute in, ``bf16`` under autocast; None takes it on a card alone. Weights
        in bfloat16 compute in their own type. ``embeddings``: this machine's folder of them, where it is not the
        configuration's. ``description``: of the data that it was trained on. Raises UserError for a model whose mapping
        is not that of two arms of six joints.
        """
        chosen = find_vector(model.config.vector)
        if chosen.action != TWO_ARMS or (chosen.state or chosen.action) != TWO_ARMS:
            raise UserError(
                f"step() drives two arms of six joints and a gripper ({', '.join(TWO_ARMS)}); this model maps "
                f"{', '.join(chosen.action)}. Use vla_ft.deployment.predictor.Predictor for other robots."
            )
        self.state_map = VectorMap(TWO_ARMS, chosen.state_divisors, "state")
        self.action_map = VectorMap(TWO_ARMS, chosen.action_divisors, "action")
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.precision = precision or ("bf16" if self.device.type == "cuda" else "fp32")
        self._autocast = self.precision == "bf16" and next(model.parameters()).dtype == torch.float32
        told = control_rate(model.config, PUBLISHED_RATE)
        self.control_frequency = told if control_frequency is None else control_frequency
        language = model.config.language
        if embeddings is not None:
            language = dataclasses.replace(language, embeddings=str(embeddings))
        self.language = InstructionTable(language)
        self.description = description

    @classmethod
    def of_run(
        cls,
        checkpoint: Path,
        *,
        dataset: str | None = None,
        precision: Precision = "run",
        control_frequency: int | None = None,
        **options: Any,
    ) -> RoboticDiffusionTransformerModel:
        """From a run of ours: its latest checkpoint, averaged weights where there are any. Raises UserError.

        ``dataset``: the one of a mixture whose robot it will drive. Rate and precision are those of the run unless
        they are given; ``options`` are the constructor's.
        """
        predictor = Predictor.load(checkpoint, dataset=dataset, precision=precision)
        if not isinstance(predictor.model, Rdt):
            raise UserError(f"{checkpoint} is a run of policy '{predictor.config.policy}', expected 'rdt'.")
        if control_frequency is None:
            control_frequency = control_rate(predictor.config.model, predictor.description.fps)
        found = {"precision": predictor.precision, "description": predictor.description}
        return cls(predictor.model, control_frequency=control_frequency, **{**found, **options})

    @classmethod
    def of_published(
        cls,
        weights: str,
        config: Config | None = None,
        *,
        precision: Literal["fp32", "bf16"] | None = None,
        device: str = "auto",
        **options: Any,
    ) -> RoboticDiffusionTransformerModel:
        """From published weights by name or path (see ``rdt.checkpoint``). Raises UserError.

        Weights are held in ``precision`` and compute in it, as published: None takes bfloat16 on a card. They come
        from the mapped file, one at a time: fresh ones are never made.
        """
        config = config or Config()
        if precision is None:
            precision = "bf16" if choose_device(device).type == "cuda" else "fp32"
        model = _without_values(config).to(_TYPES[precision])
        try:
            load_weights(model, str(resolve(weights)), assign=True)
        except ValueError as error:
            raise UserError(
                f"{weights} does not hold the whole model: {error} Published RDT weights take their image tower from "
                f"model.vision.weights, which is {config.vision.weights}; give both."
            ) from error
        return cls(model, precision=precision, device=device, **options)

    def command_of(self, proprio: Tensor | np.ndarray) -> np.ndarray:
        """The command float32 [14] that stands for measured joints [14]: grippers go from the range that they are
        measured in to the one that they are commanded in."""
        return self.action_map.from_vector(self.state_map.to_vector(joints_of(proprio, TWO_ARMS)))[0]

    @torch.no_grad()
    def step(self, proprio: Tensor | np.ndarray, images: Sequence[Picture | None], text_embeds: Tensor | str) -> Tensor:
        """Commands float32 [1, H, 14] in robot units.

        ``proprio``: numbers [1, 14] or [14], of any type and device. ``images``: external, right wrist, left wrist one
        step ago, then now, uint8 RGB; None for one that does not exist (all three of the past at the first call).
        ``text_embeds``: [1, n, W] or [n, W], or the instruction itself. Raises UserError on anything else.
        """
        joints = joints_of(proprio, TWO_ARMS)
        batch = {key: value.to(self.device) for key, value in self._batch(joints, text_embeds).items()}
        shown = pictures_of(images, self.model.config.history, len(self.model.cameras))
        noise = torch.randn(1, self.model.config.chunk_size, len(self.action_map.mask), device=self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            valid, tokens = self._see(shown)
            chunk = self.model.sample_from(of_batch({**batch, "image_valid": valid}), tokens, noise)
        return torch.from_numpy(self.action_map.from_vector(chunk.float().cpu().numpy()))

    def _batch(self, joints: np.ndarray, text: Tensor | str) -> Batch:
        tokens = tokens_of(self.language.get(text) if isinstance(text, str) else text, self.model.config.language)
        return {
            "state": torch.from_numpy(self.state_map.to_vector(joints)).float()[None],
            "state_mask": torch.from_numpy(self.state_map.mask)[None],
            "action_mask": torch.from_numpy(self.action_map.mask)[None],
            "ctrl_freq": torch.tensor([self.control_frequency]),
            "lang_tokens": tokens,
            "lang_mask": torch.ones(tokens.shape[:2], dtype=torch.bool),
        }

    def _see(self, pictures: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """(which exist, bool [1, T, 3]; tokens [1, T * 3 * N, W])."""
        valid = torch.tensor([one is not None for one in pictures], device=self.device)
        tokens = self.model.picture_tokens([one if one is None else one.to(self.device) for one in pictures])
        return valid.view(1, self.model.config.history, -1), tokens


def _without_values(config: Config) -> Rdt:
    """The model on the meta device, but for what is counted and stands in no file."""
    with torch.device("meta"):
        model = Rdt(config)
    places = torch.arange(config.vision.tokens)[None]
    model.vision.tower.embeddings.register_buffer("position_ids", places, persistent=False)
    return model
