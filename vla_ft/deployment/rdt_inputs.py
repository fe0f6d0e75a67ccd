"""What a robot's program passes to RDT's ``step``, checked: nothing wrong may come out as a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.policies.rdt.config import LanguageConfig

Picture = Image.Image | np.ndarray


def joints_of(proprio: Tensor | np.ndarray | Sequence[float], names: Sequence[str]) -> np.ndarray:
    """float64 [1, P] of [1, P] or [P] numbers of any type, on any device. Raises UserError."""
    try:
        values = torch.as_tensor(proprio)
        joints = values.detach().cpu().to(torch.float64).numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"proprio is no array of numbers ({error}). Expected [1, {len(names)}] floats.") from error
    if joints.shape not in ((len(names),), (1, len(names))):
        raise UserError(f"proprio has shape {joints.shape}, expected [1, {len(names)}]: {', '.join(names)}.")
    joints = joints.reshape(1, -1)
    wrong = [f"{name} {value}" for name, value in zip(names, joints[0], strict=True) if not np.isfinite(value)]
    if wrong:
        raise UserError(f"proprio has {', '.join(wrong)}, expected finite numbers. Look at the joint sensors.")
    return joints


def tokens_of(embedding: Tensor, config: LanguageConfig) -> Tensor:
    """[1, n, W] of [1, n, W] or [n, W] floats, type and device as they are. Raises UserError."""
    tokens = embedding[None] if embedding.ndim == 2 else embedding
    if tokens.ndim != 3 or len(tokens) != 1 or tokens.shape[2] != config.width or not tokens.is_floating_point():
        raise UserError(
            f"text_embeds is {tokens.dtype} {tuple(embedding.shape)}, expected floats [1, tokens, {config.width}]."
        )
    if not 0 < tokens.shape[1] <= config.max_tokens:
        raise UserError(
            f"text_embeds has {tokens.shape[1]} tokens, the model has positions for 1 to {config.max_tokens}. Shorten "
            "the instruction."
        )
    if not torch.isfinite(tokens).all():
        raise UserError("text_embeds holds NaN or infinity. Compute it again with `vla-ft embed-language`.")
    return tokens.detach()


def pictures_of(images: Sequence[Picture | None], history: int, cameras: int) -> list[Tensor | None]:
    """uint8 [1, H, W, 3] of each picture, None where there is none. Raises UserError."""
    if len(images) != history * cameras:
        raise UserError(
            f"{len(images)} images, expected {history * cameras}: external, right wrist, left wrist, for each of "
            f"{history} steps, oldest first; None where there is none."
        )
    return [None if image is None else _picture(image) for image in images]


def _picture(image: Any) -> Tensor:
    values = np.array(image)
    if values.dtype != np.uint8:
        raise UserError(f"A picture is {values.dtype}, expected uint8, 0 to 255: nothing is scaled here.")
    if values.ndim != 3 or values.shape[2] != 3 or not values.size:
        raise UserError(f"A picture has shape {values.shape}, expected RGB [height, width, 3].")
    return torch.from_numpy(values)[None]
