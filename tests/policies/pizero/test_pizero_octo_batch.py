"""The published guide's random batch: every key, shape and dtype, and through processor and model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pizero_examples import SIZE, description, model, samples, small_config, statistics

from vla_ft.data.noise import INSTRUCTIONS
from vla_ft.errors import UserError
from vla_ft.policies.pizero import build_processor
from vla_ft.policies.pizero.octo_batch import generate_fake_batch, octo_batch_of, random_octo_batch, samples_of


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


def test_the_guides_function() -> None:
    """Its defaults, its types, another batch at every call, the same under a seed."""
    torch.manual_seed(0)
    batch, other = generate_fake_batch(), generate_fake_batch()
    assert batch["observation"]["image_primary"].shape == (8, 1, 224, 224, 3)
    assert batch["observation"]["image_primary"].dtype == torch.uint8
    assert batch["observation"]["timestep"].dtype == torch.int32
    assert batch["observation"]["proprio"].shape == (8, 1, 8) and batch["action"].shape == (8, 1, 4, 7)
    assert not torch.equal(batch["action"], other["action"])
    torch.manual_seed(0)
    assert torch.equal(generate_fake_batch()["action"], batch["action"])


def test_unnormalised_it_reaches_the_model_as_it_was_drawn() -> None:
    batch = drawn()
    one = build_processor(small_config(normalization="none"), description(), statistics())
    collated = one.collate(samples_of(batch))
    assert np.array_equal(collated["action"].numpy(), batch["action"][:, 0])
    assert np.array_equal(collated["proprio"].numpy(), batch["observation"]["proprio"][:, 0])
    assert np.abs(batch["action"]).max() > 1, "and is not bounded"
    assert np.array_equal(one.unnormalize(collated["action"]), batch["action"][:, 0])


def test_our_samples_become_such_a_batch_and_come_back() -> None:
    ours = samples(3)
    for one in ours:
        one["action_pad_mask"] = np.array([True, True, False, False])
    batch = octo_batch_of(ours)
    expected = kinds(drawn())
    expected["task"]["pad_mask_dict"] = {"language_instruction": ("bool", (3,))}
    assert kinds(batch) == expected | {"dataset_name": [bytes] * 3}
    assert batch["observation"]["task_completed"][0, 0].tolist() == [False, False, False, True]
    assert batch["action_pad_mask"][0, 0].all(-1).tolist() == [True, True, True, False]
    for back, one in zip(samples_of(batch), ours, strict=True):
        assert back["task"] == one["task"] and back["dataset_name"] == "arm"
        assert np.array_equal(back["action"], one["action"])
        assert all(np.array_equal(back["observation"][key], value) for key, value in one["observation"].items())
    ours[0]["observation"]["timestep"] = np.zeros(2, np.int32)
    with pytest.raises(UserError, match="several observation steps"):
        octo_batch_of(ours)
