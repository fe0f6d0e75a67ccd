"""What RDT's augmentation costs: pictures of 480 x 640 a CPU-second, and milliseconds of each operator. Prints JSON.

OMP_NUM_THREADS=1 python benchmarks/rdt_augmentation.py > benchmarks/results/rdt_augmentation.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from vla_ft.data import corruption
from vla_ft.data.picture_augmentation import PictureAugmentation, PictureAugmentationConfig, jittered
from vla_ft.data.sample import Sample

_POSITIONS = 40


def milliseconds(work: Callable[[], object], count: int = 5) -> float:
    """Of the CPU, the mean of ``count`` calls after one that warms up."""
    work()
    started = time.process_time()
    for _ in range(count):
        work()
    return round(1000 * (time.process_time() - started) / count, 1)


def main() -> None:
    """Measure and print."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = np.kron(coarse, np.ones((16, 16, 1), dtype=np.uint8))
    config = PictureAugmentationConfig()
    augmentation = PictureAugmentation(config, 0)
    sample = Sample(
        observation={f"image_{name}": np.stack([image, image]) for name in ("high", "left", "right")},
        action=np.zeros((1, 14), np.float32),
        action_pad_mask=np.ones(1, bool),
        task={"language_instruction": ""},
        dataset_name="",
    )
    operators: dict[str, Callable[[], object]] = {
        "colour": lambda: jittered(image, config, random),
        **{kind: lambda kind=kind: corruption.noisy(image, kind, 6.0, True, random) for kind in corruption.NOISES},
        "gaussian blur, sigma 2": lambda: corruption.gaussian_blurred(image, 2.0),
        "mean of 5": lambda: corruption.averaged(image, 5),
        "median of 7": lambda: corruption.median(image, 7),
        "median of 11": lambda: corruption.median(image, 11),
        "motion over 19": lambda: corruption.blurred_by_motion(image, 19, 30.0, 0.2),
        "motion over 35": lambda: corruption.blurred_by_motion(image, 35, 30.0, 0.2),
    }
    found = {name: milliseconds(work, 3) for name, work in operators.items()}
    started = time.process_time()
    for position in range(_POSITIONS):
        augmentation(sample, position)
    whole = (time.process_time() - started) / _POSITIONS
    print(json.dumps({"ms": found, "sample_of_six_pictures_ms": round(1000 * whole, 1)}, indent=1))


if __name__ == "__main__":
    main()
