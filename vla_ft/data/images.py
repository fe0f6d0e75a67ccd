"""Lanczos3 resizing with antialiasing, as TensorFlow's ``tf.image.resize`` does it for the published RLDS loaders."""

from __future__ import annotations

import functools

import numpy as np

_RADIUS = 3.0


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] at ``size`` (height, width): rounded and clipped. The aspect ratio is not kept."""
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    rows, columns = _weights(height, size[0]), _weights(width, size[1])
    down = np.dot(rows, image.reshape(height, -1).astype(np.float32)).reshape(size[0], width, 3)
    across = np.dot(columns, down.transpose(1, 0, 2).reshape(width, -1)).reshape(size[1], size[0], 3)
    return np.clip(np.rint(across), 0, 255).astype(np.uint8).transpose(1, 0, 2)


@functools.lru_cache(maxsize=64)
def _weights(before: int, after: int) -> np.ndarray:
    """float32 [after, before]: what each pixel before contributes to each pixel after along one axis.

    Pixel centres lie at halves. When shrinking, the kernel is widened by the scale, which is the antialiasing.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    distance = (np.arange(before) + 0.5 - centres[:, None]) / stretch
    kernel = np.where(np.abs(distance) < _RADIUS, np.sinc(distance) * np.sinc(distance / _RADIUS), 0.0)
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
