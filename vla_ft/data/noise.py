"""Demonstrations in which there is nothing to learn: pictures, proprioception and actions are drawn at random.

What a published guide to open-pi-zero tests a pipeline with (``data.train.dataset_mix: random``). Losses on it compare
to nothing: actions are normal numbers without bounds, and a gripper is neither open nor closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vla_ft.data.formats.writing import Step
from vla_ft.data.sample import IMAGE_PREFIX

INSTRUCTIONS = (
    "pick banana from white bowl",
    "place green can",
    "close middle drawer",
    "move redbull near chip bag",
)
"""Of the guide."""


def random_picture(random: np.random.Generator, *shape: int) -> np.ndarray:
    """uint8 of this shape, every value as likely."""
    return random.integers(0, 256, shape, dtype=np.uint8)


def random_numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 of this shape from the normal distribution."""
    return random.standard_normal(shape, dtype=np.float32)


def noise_steps(
    random: np.random.Generator,
    length: int,
    *,
    cameras: Sequence[str],
    image_size: tuple[int, int],
    action_dim: int,
    proprio_dim: int,
) -> Iterator[Step]:
    """``length`` steps of an episode, as ``DatasetWriter.add`` takes them."""
    for _ in range(length):
        images = {f"{IMAGE_PREFIX}{camera}": random_picture(random, *image_size, 3) for camera in cameras}
        action = random_numbers(random, action_dim)
        yield {"action": action, "proprio": random_numbers(random, proprio_dim), **images}
