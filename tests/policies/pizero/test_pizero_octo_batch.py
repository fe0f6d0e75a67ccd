"""The published guide's random batch: every key, shape and dtype, and through processor and model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pizero_examples import SIZE, description, model, small_config, statistics

from vla_ft.data.noise import INSTRUCTIONS
from vla_ft.errors import UserError
from vla_ft.policies.pizero import build_processor
from vla_ft.policies.pizero.octo_batch import random_octo_batch, samples_of


def drawn(**changes: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {"action_dim": 7, "proprio_dim": 8, "image_size": (SIZE, SIZE)}
    return random_octo_batch(np.random.default_rng(0), 3, **{**sizes, **changes})


def kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: kinds(one) for key, one in value.items()}
    return [type(one) for one in value] if isinstance(value, list) else (value.dtype.name, value.shape)


@pytest.mark.parametrize(("window", "horizon", "proprio"), [(1, 4, 8), (2, 6, 7)])
def test_every_key_shape_and_type(window: int, horizon: int, proprio: int) -> None:
    steps = (3, window)
    masks = dict.fromkeys(("image_primary", "proprio", "timestep"), ("bool", steps))
    assert kinds(drawn(window=window, horizon=horizon, proprio_dim=proprio)) == {
        "observation": {
            "image_primary": ("uint8", (*steps, SIZE, SIZE, 3)),
            "proprio": ("float32", (*steps, proprio)),
            "timestep": ("int32", steps),
            "pad_mask_dict": masks,
            "timestep_pad_mask": ("bool", steps),
            "task_completed": ("bool", (*steps, horizon)),
        },
        "task": {"language_instruction": [bytes] * 3},
        "action": ("float32", (*steps, horizon, 7)),
        "action_pad_mask": ("bool", (*steps, horizon, 7)),
        "dataset_name": [str] * 3,
    }


def test_values_are_spread_as_documented() -> None:
    batch = random_octo_batch(np.random.default_rng(1), 64, action_dim=7, proprio_dim=8, image_size=(16, 16))
    picture, proprio = batch["observation"]["image_primary"], batch["observation"]["proprio"]
    assert picture.min() == 0 and picture.max() == 255 and abs(picture.mean() - 127.5) < 1
    assert abs(proprio.mean()) < 0.1 and abs(batch["action"].std() - 1) < 0.1
    assert set(batch["task"]["language_instruction"]) == {text.encode() for text in INSTRUCTIONS}
    assert batch["action_pad_mask"].all() and not batch["observation"]["task_completed"].all()


def test_it_goes_through_processor_and_model() -> None:
    batch = drawn()
    one = build_processor(small_config(), description(), statistics())
    collated = one.collate(samples_of(batch))
    assert torch.isfinite(model()(collated).loss)
    assert np.array_equal(collated["image"].numpy(), batch["observation"]["image_primary"][:, 0])
    texts = [instruction.decode() for instruction in batch["task"]["language_instruction"]]
    batch["task"]["language_instruction"], batch["dataset_name"] = texts, [b"dummy_dataset"] * 3
    again = one.collate(samples_of(batch))
    assert all(torch.equal(again[key], value) for key, value in collated.items())


def test_windows_of_several_steps_are_refused() -> None:
    with pytest.raises(UserError, match=r"window_size: 1"):
        samples_of(drawn(window=2))
