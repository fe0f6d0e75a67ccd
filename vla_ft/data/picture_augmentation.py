"""RDT's augmentation of training pictures: every picture by itself, half of them, in colour, by corruption, or both.

Facts of thu-ml/RoboticsDiffusionTransformer, ``train/dataset.py``: colours change as torchvision's ``ColorJitter`` does
on Pillow pictures, corruption is ``corruption.corrupted``. Borders to a square and the replacement of hidden pictures
by grey come after it, in the model. What is drawn is a function of (seed, position in the run, camera, frame) alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

from vla_ft.data.corruption import corrupted
from vla_ft.data.sample import IMAGE_PREFIX, Sample

_TAG = 0x50696374  # keeps these draws apart from whatever else is drawn for a position
Kind = Literal["corruption", "color", "both"]
KINDS: tuple[Kind, ...] = ("corruption", "color", "both")


@dataclass(frozen=True, kw_only=True)
class PictureAugmentationConfig:
    """Which pictures change, and how far their colours do: factors lie within one plus or minus these."""

    chance: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.5
    hue: float = 0.03
    """Greatest turn, either way; 1 is once around the circle."""


class PictureAugmentation:
    """Augments the images of samples, each by its own draw. Cheap to pickle; workers hold a copy."""

    def __init__(self, config: PictureAugmentationConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, sample: Sample, position: int) -> Sample:
        """The sample at a global position with augmented images; what repeats a frame before the episode stays."""
        real = sample["observation"].get("pad_mask")
        observation = {
            key: self._frames(key, value, position, real) if key.startswith(IMAGE_PREFIX) else value
            for key, value in sample["observation"].items()
        }
        return Sample(**{**sample, "observation": observation})  # type: ignore[typeddict-item]

    def draws(self, position: int, key: str, frame: int) -> np.random.Generator:
        """The random numbers of one picture: frame ``frame`` of observation ``key`` at a global position."""
        counter = [0, position, zlib.crc32(key.encode()), frame]
        return np.random.Generator(np.random.Philox(key=[self.seed % 2**64, _TAG], counter=counter))

    def kind(self, random: np.random.Generator) -> Kind | None:
        """What is done to a picture, from its first random numbers; None leaves it."""
        return KINDS[random.integers(len(KINDS))] if random.random() < self.config.chance else None

    def _frames(self, key: str, frames: np.ndarray, position: int, real: np.ndarray | None) -> np.ndarray:
        if real is None or len(real) != len(frames):
            real = np.ones(len(frames), dtype=bool)
        one = [
            self._picture(frame, self.draws(position, key, number)) if real[number] else frame
            for number, frame in enumerate(frames)
        ]
        return np.stack(one)

    def _picture(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        kind = self.kind(random)
        if kind in ("color", "both"):
            image = jittered(image, self.config, random)
        return corrupted(image, random) if kind in ("corruption", "both") else image


def jittered(image: np.ndarray, config: PictureAugmentationConfig, random: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] with brightness, contrast, saturation and hue changed, in an order that is drawn as well."""
    u = random.random(4) * 2 - 1
    steps: tuple[Callable[[Image.Image], Image.Image], ...] = (
        lambda picture: ImageEnhance.Brightness(picture).enhance(1 + config.brightness * u[0]),
        lambda picture: ImageEnhance.Contrast(picture).enhance(1 + config.contrast * u[1]),
        lambda picture: ImageEnhance.Color(picture).enhance(1 + config.saturation * u[2]),
        lambda picture: turned_hue(picture, config.hue * u[3]),
    )
    picture = Image.fromarray(image)
    for step in random.permutation(len(steps)):
        picture = steps[step](picture)
    return np.asarray(picture)


def turned_hue(picture: Image.Image, turn: float) -> Image.Image:
    """The hue turned by ``turn`` of the circle, which Pillow divides into 256 parts; the rest of a part is cut off."""
    hue, saturation, value = picture.convert("HSV").split()
    moved = (np.asarray(hue).astype(np.int16) + int(turn * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")
