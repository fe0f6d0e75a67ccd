"""RDT on a two-armed robot, with the interface of the published ``agilex_model.py``: ``step`` from raw robot units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vla_ft.deployment.predictor import Predictor
from vla_ft.devices import choose_device
from vla_ft.errors import UserError
from vla_ft.policies.base import Batch
from vla_ft.policies.rdt.checkpoint import load_weights
from vla_ft.policies.rdt.conditions import of_batch
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.language import InstructionTable
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.vector import TWO_ARMS, VectorMap, find_vector
from vla_ft.weights.places import resolve

Picture = Image.Image | np.ndarray


class RoboticDiffusionTransformerModel:
    """A chunk of joint commands from joints, six pictures and an instruction.

    Joints are [left 6, left gripper, right 6, right gripper] in the robot's own units: grippers are scaled on the way
    in and out by the configuration's divisors. The text encoder is never loaded: an instruction is an embedding, or a
    text that ``vla-ft embed-language`` has embedded.
    """

    def __init__(self, model: Rdt, *, control_frequency: int = 25, device: str = "auto") -> None:
        """Raises UserError for a model whose mapping is not that of two arms of six joints."""
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
        self.control_frequency = control_frequency
        self.language = InstructionTable(model.config.language)

    @classmethod
    def of_run(cls, checkpoint: Path, **options: Any) -> RoboticDiffusionTransformerModel:
        """From a run of ours: its latest checkpoint, averaged weights where there are any. Raises UserError."""
        predictor = Predictor.load(checkpoint)
        if not isinstance(predictor.model, Rdt):
            raise UserError(f"{checkpoint} is a run of policy '{predictor.config.policy}', expected 'rdt'.")
        frequency = predictor.config.model.control_frequency or round(predictor.description.fps)
        return cls(predictor.model, **{"control_frequency": frequency, **options})

    @classmethod
    def of_published(
        cls, weights: str, config: Config | None = None, **options: Any
    ) -> RoboticDiffusionTransformerModel:
        """From published weights by name or path (see ``rdt.checkpoint``), without a copy. Raises UserError."""
        model = Rdt(config or Config())
        load_weights(model, str(resolve(weights)))
        return cls(model, **options)

    @torch.no_grad()
    def step(self, proprio: Tensor | np.ndarray, images: Sequence[Picture | None], text_embeds: Tensor | str) -> Tensor:
        """Commands float32 [1, H, 14] in robot units.

        ``proprio``: float [1, 14] or [14]. ``images``: external, right wrist, left wrist one step ago, then now; None
        for one that does not exist (all three of the past at the first call). ``text_embeds``: [1, n, W] or [n, W], or
        the instruction itself. Raises UserError on anything else.
        """
        joints = np.asarray(proprio, dtype=np.float64).reshape(-1, len(TWO_ARMS))
        if len(joints) != 1:
            raise UserError(f"proprio has shape {np.shape(proprio)}, expected [1, {len(TWO_ARMS)}].")
        batch = {key: value.to(self.device) for key, value in self._batch(joints, text_embeds).items()}
        valid, tokens = self._see(images)
        chunk = self.model.sample_from(of_batch({**batch, "image_valid": valid}), tokens, self._noise())
        return torch.from_numpy(self.action_map.from_vector(chunk.float().cpu().numpy()))

    def _batch(self, joints: np.ndarray, text: Tensor | str) -> Batch:
        tokens = self.language.get(text) if isinstance(text, str) else text
        tokens = tokens[None] if tokens.ndim == 2 else tokens
        width = self.model.config.language.width
        if tokens.ndim != 3 or len(tokens) != 1 or tokens.shape[2] != width:
            raise UserError(f"text_embeds has shape {tuple(tokens.shape)}, expected [1, tokens, {width}].")
        return {
            "state": torch.from_numpy(self.state_map.to_vector(joints)).float()[None],
            "state_mask": torch.from_numpy(self.state_map.mask)[None],
            "ctrl_freq": torch.tensor([self.control_frequency]),
            "lang_tokens": tokens,
            "lang_mask": torch.ones(tokens.shape[:2], dtype=torch.bool),
        }

    def _see(self, images: Sequence[Picture | None]) -> tuple[Tensor, Tensor]:
        """(which exist, bool [1, T, 3]; tokens [1, T * 3 * N, W])."""
        places = self.model.config.history * len(self.model.cameras)
        if len(images) != places:
            raise UserError(
                f"{len(images)} images, expected {places}: external, right wrist, left wrist, for each of "
                f"{self.model.config.history} steps, oldest first; None where there is none."
            )
        shown = [None if one is None else torch.from_numpy(np.array(one, dtype=np.uint8))[None] for one in images]
        wrong = next((one for one in shown if one is not None and (one.ndim != 4 or one.shape[3] != 3)), None)
        if wrong is not None:
            raise UserError(f"A picture has shape {tuple(wrong.shape[1:])}, expected RGB [height, width, 3].")
        valid = torch.tensor([one is not None for one in shown], device=self.device)
        tokens = self.model.picture_tokens([one if one is None else one.to(self.device) for one in shown])
        return valid.view(1, self.model.config.history, -1), tokens

    def _noise(self) -> Tensor:
        return torch.randn(1, self.model.config.chunk_size, len(self.action_map.mask), device=self.device)
