"""Samples to batches, and actions back to robot units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from act_examples import ACTIONS, CHUNK, PROPRIO, description, samples, small_config, statistics

from vla_ft.errors import UserError
from vla_ft.policies.act import Config, build_model, build_processor


def test_batch_contract() -> None:
    processor = build_processor(small_config(), description(), statistics())
    given = samples(3)
    batch = processor.collate(given)
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items()} == {
        "image_top": ((3, 32, 64, 3), torch.uint8),
        "image_wrist": ((3, 32, 64, 3), torch.uint8),
        "proprio": ((3, PROPRIO), torch.float32),
        "action": ((3, CHUNK, ACTIONS), torch.float32),
        "action_pad_mask": ((3, CHUNK), torch.bool),
    }
    assert torch.equal(batch["image_top"][1], torch.from_numpy(given[1]["observation"]["image_top"][0]))
    assert (processor.window.observation_steps, processor.window.action_horizon) == (1, CHUNK)
    assert set(processor.keys) == {"proprio", "image_top", "image_wrist"}
    assert torch.isfinite(build_model(small_config(), description())(batch).loss)


def test_normalisation_forms() -> None:
    """The constant last dimension is floored in the original's form, and blown up in LeRobot's."""
    given = samples(1)
    given[0]["action"][:] = [1.5, 2.0, 3.001]
    unbiased = 0.5 * np.sqrt(101 / 100)
    original = build_processor(Config.original(chunk_size=CHUNK), description(), statistics()).collate(given)
    np.testing.assert_allclose(original["action"][0, 0], [0.5 / unbiased, 0, 0.1], rtol=1e-3)
    lerobot = build_processor(Config.lerobot(chunk_size=CHUNK), description(), statistics()).collate(given)
    assert lerobot["action"][0, 0, 0] == 1.0
    assert lerobot["action"][0, 0, 2] > 1e4


def test_actions_return_to_robot_units() -> None:
    processor = build_processor(small_config(), description(), statistics())
    given = samples(2)
    actions = processor.unnormalize(processor.collate(given)["action"].requires_grad_())
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, np.stack([s["action"] for s in given]), rtol=1e-4, atol=1e-5)


def test_observations_alone_make_a_batch() -> None:
    """A robot has no targets."""
    given = samples(1)
    for key in ("action", "action_pad_mask"):
        del given[0][key]  # type: ignore[misc]
    batch = build_processor(small_config(), description(), statistics()).collate(given)
    assert "action" not in batch
    assert build_model(small_config(), description()).sample(batch).shape == (1, CHUNK, ACTIONS)


def test_statistics_of_another_robot_are_refused() -> None:
    other = description(action_names=("x", "y", "z"))
    with pytest.raises(UserError, match=r"statistics are of action dimensions a0, a1, a2.*has x, y, z"):
        build_processor(small_config(), other, statistics())


def test_samples_that_do_not_fit_are_named() -> None:
    processor = build_processor(small_config(), description(), statistics())
    wide, odd = samples(1), samples(2)
    wide[0]["action"] = np.zeros((CHUNK, 5), np.float32)
    with pytest.raises(UserError, match="action has 5 dimensions, the policy's statistics have 3"):
        processor.collate(wide)
    odd[1]["observation"]["image_wrist"] = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="image_wrist comes in different shapes"):
        processor.collate(odd)
