"""Noise and blur on pictures, as imgaug 0.4 (over OpenCV) gives them to RDT's training, on the CPU in NumPy and Pillow.

Operators take and give uint8 [H, W, 3]. Sums are rounded to the nearest level, ties to even, and cut off at 0 and 255.
Borders are mirrored without repeating the edge, for the median they repeat it, both as OpenCV does.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

Noise = Literal["gaussian", "laplace", "poisson"]
NOISES: tuple[Noise, ...] = ("gaussian", "laplace", "poisson")
GREATEST_SCALE = 0.05 * 255
"""Noise of every kind draws its scale (standard deviation, scale, mean) from 0 to this, in levels of 255."""
GREATEST_SIGMA = 3.0


def corrupted(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One kind of noise, and in half of all cases one blur, in either order (RDT's ``image_corrupt.py``)."""
    noise_first, blurs = random.random() < 0.5, random.random() < 0.5
    if noise_first:
        image = random_noise(image, random)
    if blurs:
        image = random_blur(image, random)
    return image if noise_first else random_noise(image, random)


def random_noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise of one of the three kinds, the same in all channels in half of all cases."""
    kind = NOISES[random.integers(len(NOISES))]
    scale, per_channel = random.uniform(0, GREATEST_SCALE), bool(random.random() < 0.5)
    return noisy(image, kind, scale, per_channel, random)


def random_blur(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A blur by motion in half of all cases, else a Gaussian, a mean or a median."""
    if random.random() < 0.5:
        size = int(random.integers(3, 37))
        return blurred_by_motion(image, size, random.uniform(0, 360), random.uniform(-1, 1))
    which = random.integers(3)
    if which == 0:
        return gaussian_blurred(image, random.uniform(0, GREATEST_SIGMA))
    if which == 1:
        return averaged(image, int(random.integers(2, 8)))
    return median(image, int(random.integers(3, 12)))


def noisy(image: np.ndarray, kind: Noise, scale: float, per_channel: bool, random: np.random.Generator) -> np.ndarray:
    """Add whole numbers drawn for each pixel, or for each of its channels.

    ``gaussian``: standard deviation ``scale``; ``laplace``: scale ``scale``; ``poisson``: mean ``scale``, either sign.
    """
    shape = image.shape if per_channel else (*image.shape[:2], 1)
    if kind == "gaussian":
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    elif kind == "laplace":
        sizes = random.standard_exponential(shape, dtype=np.float32) * np.float32(scale)
        values = np.where(random.integers(0, 2, shape, dtype=np.int8), sizes, -sizes)
    else:
        counts = random.poisson(scale, shape)
        values = np.where(random.integers(0, 2, shape, dtype=np.int8), counts, -counts)
    return np.clip(image + np.rint(values).astype(np.int16), 0, 255).astype(np.uint8)


def gaussian_blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """By a Gaussian cut off after the pixels that ``3.3 sigma`` span, five at least (imgaug's choice)."""
    if sigma < 1e-3:
        return image
    size = max(5, int(3.3 * sigma)) | 1
    places = np.arange(size) - size // 2
    weights = np.exp(-(places**2) / (2 * sigma**2))
    weights /= weights.sum()
    return _rounded(_along(_along(image, weights, 0), weights, 1))


def averaged(image: np.ndarray, size: int) -> np.ndarray:
    """The mean over ``size`` x ``size`` pixels; of an even number the greater half lies above and to the left."""
    weights = np.full(size, 1 / size)
    return _rounded(_along(_along(image, weights, 0), weights, 1))


def median(image: np.ndarray, size: int) -> np.ndarray:
    """The median over ``size`` x ``size`` pixels, channel by channel; an even size is taken one greater."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.MedianFilter(size | 1)))


def blurred_by_motion(image: np.ndarray, size: int, angle: float, direction: float) -> np.ndarray:
    """Along a line of ``size`` pixels (see ``motion_kernel``)."""
    kernel = motion_kernel(size, angle, direction)
    half = len(kernel) // 2
    height, width = image.shape[:2]
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect").astype(np.float32)
    result = np.zeros(image.shape, dtype=np.float32)
    part = np.empty_like(result)
    for y, x in np.argwhere(kernel):
        np.multiply(padded[y : y + height, x : x + width], kernel[y, x], out=part)
        result += part
    return _rounded(result)


def motion_kernel(size: int, angle: float, direction: float) -> np.ndarray:
    """float32 [k, k] that sums to 1: a line through the centre, turned by ``angle`` degrees. k is ``size``, made odd.

    ``direction`` from -1 to 1: how the weight runs along the line, from all at its end over even (0) to all at its
    start. Levels are those of a picture of bytes, as published.
    """
    size |= 1
    line = np.zeros((size, size), dtype=np.float32)
    share = (direction + 1) / 2
    line[:, size // 2] = np.linspace(share, 1 - share, size)
    turned = np.floor(_turned((line * 255).astype(np.uint8), angle) + 0.5)
    return (turned / turned.sum()).astype(np.float32)


def _turned(picture: np.ndarray, angle: float) -> np.ndarray:
    """A square picture turned about its centre, bilinear, with nothing around it."""
    centre, turn = (len(picture) - 1) / 2, math.radians(angle)
    y, x = np.indices(picture.shape) - centre
    rows = centre + y * math.cos(turn) - x * math.sin(turn)
    columns = centre + y * math.sin(turn) + x * math.cos(turn)
    # A border of zeros, wide enough that every source lies inside.
    border = len(picture)
    wide = np.pad(picture, border).astype(np.float64)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    top, left = top + border, left + border
    upper = wide[top, left] * (1 - right) + wide[top, left + 1] * right
    lower = wide[top + 1, left] * (1 - right) + wide[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def _along(image: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Weighted sums along an axis, float32; the weights begin ``len(weights) // 2`` before each pixel."""
    before = len(weights) // 2
    around = [(0, 0)] * image.ndim
    around[axis] = (before, len(weights) - 1 - before)
    padded = np.pad(image, around, mode="reflect").astype(np.float32)
    result = np.zeros(image.shape, dtype=np.float32)
    part = np.empty_like(result)
    for place, weight in enumerate(weights):
        chosen = [slice(None)] * image.ndim
        chosen[axis] = slice(place, place + image.shape[axis])
        np.multiply(padded[tuple(chosen)], np.float32(weight), out=part)
        result += part
    return result


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
