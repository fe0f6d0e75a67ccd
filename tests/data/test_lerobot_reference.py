"""LeRobot's own reader opened what our writer wrote, and saw what went in (``lerobot_reference.py`` made the file)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lerobot_reference
import numpy as np
import pytest
from lerobot_sets import KINDS, LENGTHS, SIZE, arrays_of, describe, instruction_of

SEEN: dict[str, Any] = json.loads(Path(__file__).with_name("lerobot_reference.json").read_text())


@pytest.mark.parametrize(("version", "images"), KINDS)
def test_lerobot_saw_what_was_written(version: str, images: str) -> None:
    seen = SEEN[f"{version}_{images}"]
    assert (seen["episodes"], seen["steps"], seen["fps"]) == (len(LENGTHS), sum(LENGTHS), 10)
    ends = np.cumsum(LENGTHS)
    assert len(seen["items"]) == len(lerobot_reference.PLACES)
    for place, item in zip(lerobot_reference.PLACES, seen["items"], strict=True):
        episode = int(np.searchsorted(ends, place, side="right"))
        step, length = place - int(ends[episode]) + LENGTHS[episode], LENGTHS[episode]
        truth = arrays_of(episode, length, describe())
        asked = step + np.array(lerobot_reference.WINDOW)
        np.testing.assert_array_equal(
            np.array(item["action"], np.float32), truth["action"][np.minimum(asked, length - 1)]
        )
        assert item["action_is_pad"] == (asked >= length).tolist()
        np.testing.assert_array_equal(np.array(item["observation.state"], np.float32), truth["proprio"][step])
        assert item["timestamp"] == pytest.approx(step / 10, abs=1e-6)
        assert item["task"] == instruction_of(episode)
        for camera in ("front", "wrist"):
            frame = np.array(item["frames"][f"observation.images.{camera}"])
            grid = truth[f"image_{camera}"][step, :: lerobot_reference.STRIDE, :: lerobot_reference.STRIDE]
            difference = np.abs(frame - grid.transpose(2, 0, 1).astype(int))
            assert frame.shape == (3, SIZE[0] // lerobot_reference.STRIDE, SIZE[1] // lerobot_reference.STRIDE)
            assert difference.max() == 0 if images == "image" else difference.mean() < 6


@pytest.mark.parametrize(("version", "images"), KINDS)
def test_lerobot_took_our_statistics(version: str, images: str) -> None:
    stats = SEEN[f"{version}_{images}"]["stats"]
    truth = np.concatenate([arrays_of(e, n, describe())["action"] for e, n in enumerate(LENGTHS)]).astype(float)
    for name, value in (("mean", truth.mean(0)), ("std", truth.std(0)), ("min", truth.min(0)), ("max", truth.max(0))):
        np.testing.assert_allclose(stats["action"][name], value, rtol=1e-6, atol=1e-7)
    assert stats["action"]["count"] == [sum(LENGTHS)]
    assert ("q01" in stats["action"]) == (version == "v3.0")
    pixels = [arrays_of(e, n, describe())["image_front"] for e, n in enumerate(LENGTHS)]
    mean = np.concatenate(pixels).mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(np.ravel(stats["observation.images.front"]["mean"]), mean, rtol=1e-6)
