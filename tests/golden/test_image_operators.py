"""Image operators against TensorFlow's own numbers: ``cogact/image_ops``."""

from __future__ import annotations

import golden_files
import numpy as np
import pytest

from vla_ft.data.augmentation import (
    Draw,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation_and_hue,
    augment,
    crop_and_resize,
    to_uint8,
)
from vla_ft.data.images import resized

TOLERANCE = 2e-6


@pytest.mark.golden_files("cogact/image_ops")
def test_each_operator_and_the_whole_chain(golden: golden_files.Golden) -> None:
    given = golden.facts["params"]
    image = golden["in/image"].numpy()
    box = tuple(float(edge) for edge in golden["in/crop_box"][0])

    def same(planes: np.ndarray, key: str) -> None:
        np.testing.assert_allclose(planes.transpose(1, 2, 0), golden[key].numpy(), atol=TOLERANCE)

    x = crop_and_resize(image.transpose(2, 0, 1), box)
    same(x, "out/1_crop")
    x = adjust_brightness(x, given["brightness_delta"])
    same(x, "out/2_brightness")
    x = adjust_contrast(x, given["contrast_factor"])
    same(x, "out/3_contrast")
    same(adjust_saturation_and_hue(x, given["saturation_factor"], 0.0), "out/4_saturation")
    x = adjust_saturation_and_hue(x, given["saturation_factor"], given["hue_delta"])
    same(x, "out/5_hue")
    assert np.array_equal(to_uint8(x).transpose(1, 2, 0), golden["out/6_final_uint8"].numpy())

    draw = Draw(
        box, given["brightness_delta"], given["contrast_factor"], given["saturation_factor"], given["hue_delta"]
    )
    assert np.array_equal(augment(image, draw), golden["out/6_final_uint8"].numpy())


@pytest.mark.golden_files("cogact/image_ops")
@pytest.mark.parametrize("side", [24, 60])
def test_lanczos_is_equal_to_the_last_bit(golden: golden_files.Golden, side: int) -> None:
    assert np.array_equal(resized(golden["in/image"].numpy(), (side, side)), golden[f"out/resize_{side}"].numpy())
