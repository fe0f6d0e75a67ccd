"""Episodes for dataset writers: steps as ``DatasetWriter.add`` takes them, and what a reader has to give back."""

from __future__ import annotations

import numpy as np
from episode_sets import smooth_image

from vla_ft.data.formats.base import DatasetWriter, EpisodeReader
from vla_ft.data.sample import DatasetDescription

DESCRIPTION = DatasetDescription(
    name="toy_set",
    cameras={"primary": (12, 16), "wrist": (10, 14)},
    action_names=("x", "y", "gripper"),
    action_units=("m", "m", "fraction"),
    proprio_names=("a", "b"),
    proprio_units=("rad", "rad"),
    action_kind="joint",
    action_mode="absolute",
    gripper="0 closed, 1 open",
    fps=12.5,
)
LENGTHS = (3, 5, 1, 4)
KEYS = ("action", "proprio", "image_primary", "image_wrist")


def make_episode(number: int) -> list[dict[str, np.ndarray]]:
    """Steps of episode ``number``: random, so that nothing is right by chance."""
    rng = np.random.default_rng(number)
    return [
        {
            "action": rng.normal(size=3),
            "proprio": rng.normal(size=2),
            "image_primary": smooth_image(rng),
            "image_wrist": smooth_image(rng)[1:-1, 1:-1].copy(),
        }
        for _ in range(LENGTHS[number])
    ]


def instruction(number: int) -> str:
    """What episode ``number`` is told to do."""
    return f"press button {number}, größer"


def write_all(writer: DatasetWriter, last: int | None = None) -> None:
    """The episodes from where the writer stands to ``last`` (all by default)."""
    for number in range(writer.done, len(LENGTHS) if last is None else last):
        writer.add(make_episode(number), instruction(number))


def assert_equal(reader: EpisodeReader, tolerance: float = 0) -> None:
    """Every value of every step is the one that was written (images within ``tolerance`` on average)."""
    assert reader.lengths.tolist() == list(LENGTHS)
    assert reader.description == DESCRIPTION
    for number in range(len(LENGTHS)):
        steps = make_episode(number)
        read = reader.read(number, np.arange(len(steps)), KEYS)
        assert reader.instruction(number) == instruction(number)
        for key in KEYS:
            wanted = np.stack([step[key] for step in steps])
            if key.startswith("image"):
                assert np.abs(read[key].astype(int) - wanted).mean() <= tolerance
            else:
                assert read[key].dtype == np.float32
                assert np.array_equal(read[key], wanted.astype(np.float32))
