"""Image augmentation with TensorFlow's operators and the published recipes, on the CPU in NumPy.

The operators are ``tf.image``'s (crop_and_resize, adjust_brightness, _contrast, _saturation, _hue): RGB in [0, 1],
clipped after each, rounded to uint8 at the end. What is drawn is a function of (seed, position in the run) alone, so no
worker, rank or restart changes it, and all frames and cameras of a sample share one draw. RDT's recipe is of another
kind (``picture_augmentation``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from vla_ft.data.picture_augmentation import PictureAugmentation, PictureAugmentationConfig
from vla_ft.data.sample import IMAGE_PREFIX, Sample
from vla_ft.errors import UserError

_TAG = 0x41756720  # keeps these draws apart from whatever else is drawn for a position
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Ranges to draw from, uniformly. The defaults change nothing."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    crop_area: tuple[float, float] = (1.0, 1.0)
    """Least and greatest share of the picture's area that the crop keeps."""
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    """Least and greatest width through height, relative to the picture's; drawn in the logarithm."""
    brightness: NotNegative = 0.0
    """Greatest amount added, either way; 1 is from black to white."""
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Greatest turn, either way; 1 is once around the circle."""

    def __post_init__(self) -> None:
        for name in ("crop_area", "crop_ratio", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "crop_area" and high > 1):
                raise UserError(
                    f"Augmentation {name} is ({low}, {high}), expected 0 < least <= greatest"
                    f"{' <= 1' if name == 'crop_area' else ''}, such as (0.9, 1.0)."
                )


Settings = AugmentationConfig | PictureAugmentationConfig
RECIPES: dict[str, Settings | None] = {
    "none": None,
    "cogact": AugmentationConfig(
        crop_area=(0.9, 0.9), brightness=0.2, contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=0.05
    ),
    "pizero": AugmentationConfig(
        crop_area=(0.8, 1.0),
        crop_ratio=(0.9, 1.1),
        brightness=0.1,
        contrast=(0.9, 1.1),
        saturation=(0.9, 1.1),
        hue=0.05,
    ),
    "rdt": PictureAugmentationConfig(),
}
"""Recipe name -> what OpenVLA and CogACT, open-pi-zero, and RDT train with."""

RecipeName = Literal["none", "cogact", "pizero", "rdt"]


@dataclass(frozen=True)
class Draw:
    """One choice of every parameter. ``box``: y0, x0, y1, x1 as shares of the picture."""

    box: tuple[float, float, float, float]
    brightness: float
    contrast: float
    saturation: float
    hue: float


class Augmentation:
    """Augments the images of samples. Cheap to pickle; workers hold a copy."""

    def __init__(self, config: AugmentationConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, sample: Sample, position: int) -> Sample:
        """The sample at a global position with augmented images; everything else stays."""
        draw = self.draw(position)
        observation = {
            key: np.stack([augment(frame, draw) for frame in value]) if key.startswith(IMAGE_PREFIX) else value
            for key, value in sample["observation"].items()
        }
        return Sample(**{**sample, "observation": observation})  # type: ignore[typeddict-item]

    def draw(self, position: int) -> Draw:
        """The parameters of the sample at a global position of the run."""
        config = self.config
        # The position is not in the counter's first word, which is the one that goes on with every draw.
        source = np.random.Philox(key=[self.seed % 2**64, _TAG], counter=[0, position, 0, 0])
        u = np.random.Generator(source).random(8)
        area = _between(config.crop_area, u[0])
        ratio = np.exp(_between((np.log(config.crop_ratio[0]), np.log(config.crop_ratio[1])), u[1]))
        height, width = min(1.0, np.sqrt(area / ratio)), min(1.0, np.sqrt(area * ratio))
        y, x = u[2] * (1 - height), u[3] * (1 - width)
        return Draw(
            box=(float(y), float(x), float(y + height), float(x + width)),
            brightness=_between((-config.brightness, config.brightness), u[4]),
            contrast=_between(config.contrast, u[5]),
            saturation=_between(config.saturation, u[6]),
            hue=_between((-config.hue, config.hue), u[7]),
        )


def find_augmentation(choice: RecipeName | AugmentationConfig, seed: int) -> Augmentation | PictureAugmentation | None:
    """What ``data.augmentation`` asks for; None for none."""
    config = RECIPES[choice] if isinstance(choice, str) else choice
    if isinstance(config, PictureAugmentationConfig):
        return PictureAugmentation(config, seed)
    return None if config is None else Augmentation(config, seed)


def augment(image: np.ndarray, draw: Draw) -> np.ndarray:
    """uint8 [H, W, 3] under one draw, uint8 of the same size."""
    # Channels first: every operator then works on whole planes of contiguous memory.
    planes = np.stack([image[..., channel] for channel in range(3)])
    x = crop_and_resize(planes, draw.box)
    if draw.brightness:
        x = adjust_brightness(x, draw.brightness)
    if draw.contrast != 1:
        x = adjust_contrast(x, draw.contrast)
    if draw.saturation != 1 or draw.hue:
        # Saturation keeps colours in range, so the two share one way to HSV and back.
        x = adjust_saturation_and_hue(x, draw.saturation, draw.hue)
    pixels = to_uint8(x)
    result = np.empty(image.shape, dtype=np.uint8)
    for channel in range(3):  # much faster than a copy of the transposed array
        result[..., channel] = pixels[channel]
    return result


def crop_and_resize(planes: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Cut ``box`` out and bring it back to full size by bilinear interpolation with aligned corners.

    ``planes`` uint8 [3, H, W]; returns float32 [3, H, W] in [0, 1].
    """
    if box == (0.0, 0.0, 1.0, 1.0):
        return planes.astype(np.float32) / np.float32(255)
    _, height, width = planes.shape
    top, bottom, y = _sources(box[0], box[2], height)
    left, right, x = _sources(box[1], box[3], width)
    upper, lower = planes[:, top].astype(np.float32), planes[:, bottom].astype(np.float32)
    lower -= upper
    lower *= y[:, None]
    upper += lower
    result, step = np.take(upper, left, axis=2), np.take(upper, right, axis=2)
    step -= result
    step *= x
    result += step
    result /= np.float32(255)
    return result


def adjust_brightness(planes: np.ndarray, delta: float) -> np.ndarray:
    """Add ``delta``; clipped."""
    changed = planes + np.float32(delta)
    return _clipped(changed)


def adjust_contrast(planes: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distance to each channel's mean over the picture; clipped."""
    mean = planes.reshape(3, -1).mean(axis=1).reshape(3, 1, 1)
    changed = planes - mean
    changed *= np.float32(factor)
    changed += mean
    return _clipped(changed)


def adjust_saturation_and_hue(planes: np.ndarray, factor: float, turn: float) -> np.ndarray:
    """Scale the saturation of HSV, clipped to 1, and turn the hue by ``turn`` of the circle; float32 [3, H, W]."""
    r, g, b = planes
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    span = high - low
    # Hue in sixths of the circle: where the greatest channel lies (0, 2, 4), and how far the colour leans from there.
    red, green = high == r, high == g
    sixths = np.where(red, g - b, np.where(green, b - r, r - g))
    sixths /= np.where(span > 0, span, np.float32(1))
    sixths += np.where(red, np.float32(0), np.where(green, np.float32(2), np.float32(4)))
    chroma = np.minimum(span * np.float32(factor), high)
    result = np.empty_like(planes)
    # A channel has its full value within a sixth of its own hue and loses the chroma two sixths away, linearly between.
    for channel, own in enumerate((0, 2, 4)):
        away = sixths + np.float32(6 * turn - own)
        away -= np.float32(6) * np.rint(away * np.float32(1 / 6))
        np.abs(away, out=away)
        away -= np.float32(1)
        _clipped(away)
        away *= chroma
        np.subtract(high, away, out=result[channel])
    return result


def to_uint8(planes: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as ``tf.image.convert_image_dtype(..., saturate=True)`` gives them: times 255.5, cut off."""
    scaled = planes * np.float32(255.5)
    return np.minimum(scaled, np.float32(255), out=scaled).astype(np.uint8)


def _sources(start: float, end: float, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place of an axis: its two neighbours in the picture and how far towards the second it lies."""
    scale = (end - start) * (size - 1) / max(1, size - 1)
    places = np.clip(
        np.float32(start * (size - 1)) + np.arange(size, dtype=np.float32) * np.float32(scale), 0, size - 1
    )
    first = np.floor(places).astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (places - first).astype(np.float32)


def _clipped(values: np.ndarray) -> np.ndarray:
    """To [0, 1], in place."""
    np.maximum(values, np.float32(0), out=values)
    return np.minimum(values, np.float32(1), out=values)


def _between(bounds: tuple[float, float], u: float) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * u)


def describe(choice: RecipeName | AugmentationConfig) -> str:
    """One line for the banner."""
    config = RECIPES[choice] if isinstance(choice, str) else choice
    if config is None:
        return "none"
    name = f"{choice}: " if isinstance(choice, str) else ""
    return name + ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(config).items())
