"""RDT's recipe of augmentation: how many pictures change and how, and that nothing but their place decides it."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vla_ft.data.augmentation import describe, find_augmentation
from vla_ft.data.picture_augmentation import PictureAugmentation, PictureAugmentationConfig, jittered, turned_hue
from vla_ft.data.sample import Sample

CONFIG = PictureAugmentationConfig()


def picture(seed: int = 0, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def sample(frames: int = 2, pad: list[bool] | None = None) -> Sample:
    one = np.stack([picture()] * frames)
    observation: dict[str, Any] = {"image_top": one, "image_wrist": one.copy(), "proprio": np.ones((1, 2), np.float32)}
    if pad is not None:
        observation["pad_mask"] = np.array(pad)
    return Sample(
        observation=observation,
        action=np.zeros((1, 2), np.float32),
        action_pad_mask=np.ones(1, bool),
        task={"language_instruction": ""},
        dataset_name="d",
    )


def made() -> PictureAugmentation:
    found = find_augmentation("rdt", 7)
    assert isinstance(found, PictureAugmentation)
    return found


def test_half_of_the_pictures_change_and_each_kind_is_as_frequent() -> None:
    kinds = Counter(made().kind(made().draws(position, "image_top", 0)) for position in range(3000))
    assert kinds[None] / 3000 == pytest.approx(0.5, abs=0.03)
    for kind in ("corruption", "color", "both"):
        assert kinds[kind] / 3000 == pytest.approx(1 / 6, abs=0.025)


def test_every_picture_of_a_sample_is_drawn_by_itself() -> None:
    changed = np.array(
        [
            [
                (out["observation"][key][frame] != picture()).any()
                for key in ("image_top", "image_wrist")
                for frame in (0, 1)
            ]
            for out in (made()(sample(), position) for position in range(300))
        ]
    )
    assert np.abs(changed.mean(0) - 0.5).max() < 0.1
    assert np.abs(np.corrcoef(changed.T) - np.eye(4)).max() < 0.2


def test_a_picture_is_a_function_of_seed_position_camera_and_frame() -> None:
    first = [made()(sample(), position) for position in range(20)]
    again = pickle.loads(pickle.dumps(made()))
    for position in reversed(range(20)):
        for key in ("image_top", "image_wrist"):
            out = again(sample(), position)["observation"][key]
            assert out.dtype == np.uint8 and np.array_equal(out, first[position]["observation"][key])
    other = PictureAugmentation(CONFIG, 8)
    assert any(
        not np.array_equal(other(sample(), p)["observation"]["image_top"], first[p]["observation"]["image_top"])
        for p in range(20)
    )


def test_frames_before_the_episode_numbers_and_the_given_sample_stay() -> None:
    for position in range(30):
        given = sample(pad=[False, True])
        out = made()(given, position)["observation"]
        assert np.array_equal(out["image_top"][0], picture())
        assert out["proprio"] is given["observation"]["proprio"]
        assert np.array_equal(given["observation"]["image_top"][1], picture())


def test_colours_stay_in_their_ranges_and_fill_them() -> None:
    """On flat pictures each factor can be read off: brightness of a grey one, which the others leave alone."""
    flat = np.full((4, 4, 3), 100, dtype=np.uint8)
    only = PictureAugmentationConfig(contrast=0, saturation=0, hue=0)
    levels = np.array([jittered(flat, only, np.random.default_rng(seed))[0, 0, 0] for seed in range(300)])
    assert 70 <= levels.min() < 73 and 127 < levels.max() <= 130
    two = np.concatenate([np.full((2, 4, 3), 60, np.uint8), np.full((2, 4, 3), 140, np.uint8)])
    only = PictureAugmentationConfig(brightness=0, saturation=0, hue=0)
    spans = np.array([np.ptp(jittered(two, only, np.random.default_rng(s)).astype(int)) for s in range(300)]) / 80
    assert 0.58 < spans.min() < 0.64 and 1.36 < spans.max() < 1.42
    red = np.tile(np.array([140, 80, 80], np.uint8), (4, 4, 1))
    only = PictureAugmentationConfig(brightness=0, contrast=0, hue=0)
    spans = np.array([np.ptp(jittered(red, only, np.random.default_rng(s)).astype(int)) for s in range(300)]) / 60
    assert 0.48 < spans.min() < 0.53 and 1.47 < spans.max() < 1.52


def test_hue_turns_by_parts_of_256() -> None:
    colour = Image.fromarray(np.tile(np.array([200, 40, 40], np.uint8), (2, 2, 1)))
    before = np.asarray(colour.convert("HSV"))[0, 0, 0]
    for turn, parts in ((0.03, 7), (-0.03, -7), (0.003, 0), (1 / 3, 85)):
        after = np.asarray(turned_hue(colour, turn).convert("HSV"))[0, 0, 0]
        assert abs(((int(after) - int(before) - parts) + 128) % 256 - 128) <= 1
    assert np.array_equal(turned_hue(colour, 0.003), colour)


def test_the_banner_tells_its_name_and_ranges() -> None:
    assert describe("rdt") == "rdt: chance 0.5, brightness 0.3, contrast 0.4, saturation 0.5, hue 0.03"
