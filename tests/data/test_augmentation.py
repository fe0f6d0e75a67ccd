"""Augmentation: what is drawn, that all cameras share it, and that nothing but the position decides it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_ft.data.augmentation import (
    RECIPES,
    Augmentation,
    AugmentationConfig,
    Draw,
    adjust_saturation_and_hue,
    augment,
    find_augmentation,
)
from vla_ft.data.images import resized
from vla_ft.data.sample import Sample
from vla_ft.errors import UserError

COGACT, PIZERO = RECIPES["cogact"], RECIPES["pizero"]
assert isinstance(COGACT, AugmentationConfig)
assert isinstance(PIZERO, AugmentationConfig)
NOTHING = Draw(box=(0.0, 0.0, 1.0, 1.0), brightness=0.0, contrast=1.0, saturation=1.0, hue=0.0)


def picture(seed: int = 0, size: tuple[int, int] = (20, 28)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def sample(**images: np.ndarray) -> Sample:
    observation: dict[str, Any] = {f"image_{name}": image for name, image in images.items()}
    return Sample(
        observation={**observation, "proprio": np.ones((1, 2), np.float32)},
        action=np.zeros((1, 2), np.float32),
        action_pad_mask=np.ones(1, bool),
        task={"language_instruction": ""},
        dataset_name="d",
    )


def test_no_change_is_no_change() -> None:
    assert np.array_equal(augment(picture(), NOTHING), picture())


def test_all_cameras_and_frames_share_one_draw_and_the_rest_stays() -> None:
    frames = np.stack([picture(), picture()])
    given_sample = sample(top=frames, wrist=frames.copy())
    out = Augmentation(COGACT, 7)(given_sample, 11)
    top, wrist = out["observation"]["image_top"], out["observation"]["image_wrist"]
    assert np.array_equal(top, wrist)
    assert np.array_equal(top[0], top[1])
    assert top.shape == frames.shape
    assert top.dtype == np.uint8
    assert not np.array_equal(top, frames)
    assert np.array_equal(out["observation"]["proprio"], given_sample["observation"]["proprio"])
    assert np.array_equal(given_sample["observation"]["image_top"], frames), "the sample that was given is untouched"


def test_the_draw_is_a_function_of_seed_and_position() -> None:
    first = [Augmentation(COGACT, 7).draw(position) for position in range(50)]
    again = pickle.loads(pickle.dumps(Augmentation(COGACT, 7)))
    assert [again.draw(position) for position in reversed(range(50))] == first[::-1]
    assert len({draw.brightness for draw in first}) == 50
    assert Augmentation(COGACT, 8).draw(0) != first[0]
    assert Augmentation(COGACT, 7).draw(2**40) != first[0]


def test_draws_of_neighbours_share_no_number() -> None:
    """A counter that the position itself counts would give the next position half of this one's numbers."""
    config = AugmentationConfig(
        brightness=1.0, hue=0.5, contrast=(0.5, 1.5), saturation=(0.5, 1.5), crop_area=(0.5, 1.0)
    )
    draws = [Augmentation(config, 0).draw(position) for position in range(1000)]
    later = np.array([draw.brightness for draw in draws])[:-1]
    area = np.array([(draw.box[2] - draw.box[0]) * (draw.box[3] - draw.box[1]) for draw in draws])[1:]
    assert abs(np.corrcoef(later, area)[0, 1]) < 0.1


@pytest.mark.parametrize("config", [COGACT, PIZERO])
def test_draws_fill_their_ranges(config: AugmentationConfig) -> None:
    draws = [Augmentation(config, 0).draw(position) for position in range(2000)]
    for name, (low, high) in {
        "brightness": (-config.brightness, config.brightness),
        "contrast": config.contrast,
        "saturation": config.saturation,
        "hue": (-config.hue, config.hue),
    }.items():
        seen = np.array([getattr(draw, name) for draw in draws])
        assert low <= seen.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < seen.max() <= high
        assert abs(seen.mean() - (low + high) / 2) < 0.05 * (high - low)
    boxes = np.array([draw.box for draw in draws])
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-12
    areas, ratios = heights * widths, widths / heights
    assert config.crop_area[0] * 0.94 <= areas.min()
    assert areas.max() <= config.crop_area[1] + 1e-9
    assert config.crop_ratio[0] - 1e-9 <= ratios.min()
    assert ratios.max() <= config.crop_ratio[1] + 1e-9
    if config is COGACT:
        np.testing.assert_allclose(heights, np.sqrt(0.9))
        np.testing.assert_allclose(widths, np.sqrt(0.9))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.2, 2.0), turn=st.floats(-0.5, 0.5))
def test_colours_against_the_standard_librarys(seed: int, factor: float, turn: float) -> None:
    import colorsys

    rgb = np.random.default_rng(seed).random((3, 2, 3)).astype(np.float32)
    got = adjust_saturation_and_hue(rgb, factor, turn)
    for row in range(2):
        for column in range(3):
            h, s, v = colorsys.rgb_to_hsv(*(float(c) for c in rgb[:, row, column]))
            expected = colorsys.hsv_to_rgb((h + turn) % 1, min(1.0, s * factor), v)
            np.testing.assert_allclose(got[:, row, column], expected, atol=3e-6)


def test_recipes_by_name_and_refusals() -> None:
    assert find_augmentation("none", 0) is None
    made = find_augmentation("pizero", 3)
    assert isinstance(made, Augmentation)
    assert (made.config, made.seed) == (PIZERO, 3)
    with pytest.raises(UserError, match=r"crop_area is \(0\.9, 1\.2\)"):
        AugmentationConfig(crop_area=(0.9, 1.2))
    with pytest.raises(UserError, match="contrast is"):
        AugmentationConfig(contrast=(1.2, 0.8))


def test_resizing_keeps_flat_pictures_and_does_not_alias() -> None:
    flat = np.full((31, 47, 3), 77, dtype=np.uint8)
    assert (resized(flat, (13, 60)) == 77).all()
    # Lines of one pixel: without antialiasing every second one would survive a halving, or none.
    lines = np.zeros((64, 64, 3), dtype=np.uint8)
    lines[::2] = 200
    inside = resized(lines, (32, 32))[4:-4]
    assert np.abs(inside.astype(int) - 100).max() <= 8
    same = picture(size=(24, 24))
    assert resized(same, (24, 24)) is same
