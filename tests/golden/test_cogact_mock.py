"""The published mock fine-tuning's samples, number for number, its documented batch, and their way into training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_files import Golden

from vla_ft.policies.cogact import build_model, build_processor
from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.documented_mock import DocumentedCollator, DocumentedMock, as_sample, describe

SMALL = {"size": "mock", "action_model_type": "DiT-mock", "tokenizer": "stand-in"}


@pytest.mark.golden_files("cogact/seed_mock_dataset")
def test_the_published_numbers(golden: Golden) -> None:
    mock = DocumentedMock(golden.facts["config"]["mock_data_num_trajs"])
    assert len(mock) == golden.facts["len"] == len(list(mock))
    for number in range(2):
        for name in ("joint", "proprio", "action", "joint_chunk", "proprio_chunk", "action_chunk"):
            assert np.array_equal(getattr(mock.trajectories[number], name), golden[f"traj{number}/{name}"].numpy())
        sample, facts = mock.sample(number, 3), golden.facts["samples"][number]
        for name, got in (("action", sample["action"]), ("proprio", sample["observation"]["proprio"])):
            expected = golden[f"traj{number}/sample3/{name}"].numpy()
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
            assert got.dtype == np.float64 and got.shape == expected.shape
        for camera in ("image_primary", "image_wrist"):
            image = sample["observation"][camera]
            assert list(image.shape) == facts[f"{camera}_shape"] and str(image.dtype) == "torch.float32"
            assert image.unique().tolist() == facts["image_unique"]
    for feature in ("action", "proprio"):
        for name, got in zip(("q01", "q99"), mock.bounds(feature), strict=True):
            np.testing.assert_allclose(got, golden[f"stats/{feature}.{name}"].numpy(), rtol=1e-6)
    assert mock.sample(0, 3)["task"]["language_instruction"]
    assert DocumentedMock(1, wrist=False).sample(0, 0)["observation"]["image_wrist"] is None


def test_the_documented_batch() -> None:
    mock = DocumentedMock(3)
    batch = DocumentedCollator(Config(**SMALL))(list(mock))
    assert set(batch) == {
        "input_ids", "attention_mask", "pixel_values", "proprio", "actions", "action_masks", "labels",
    }  # fmt: skip
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert batch["input_ids"].shape == batch["attention_mask"].shape and len(batch["input_ids"]) == 3
    assert {name: tuple(value.shape) for name, value in batch["pixel_values"].items()} == dict.fromkeys(
        ("dino", "siglip", "wrist"), (3, 8, 3, 224, 224)
    )
    assert batch["pixel_values"]["siglip"].unique().tolist() == [1.0], "white, around a mean of a half"
    assert batch["actions"].shape == (3, 15, 7) and batch["proprio"].shape == (3, 8, 7)
    assert torch.equal(batch["labels"], batch["actions"]) and batch["action_masks"].eq(1).all()
    assert "wrist" not in DocumentedCollator(Config(**SMALL))(list(DocumentedMock(1, wrist=False)))["pixel_values"]


def test_it_trains_the_model_through_the_real_collator() -> None:
    mock, config = DocumentedMock(2), Config(**SMALL, repeated_diffusion_steps=2)
    processor = build_processor(config, describe(), mock.statistics())
    documented = list(mock)
    samples = [as_sample(one, mock, config.horizon) for one in documented]
    batch = processor.collate(samples)
    assert batch["image"].shape == (2, 224, 224, 3) and (batch["image"] == 255).all()
    assert batch["action"].shape == (2, 16, 7) and batch["action_pad_mask"].sum().item() == 30
    # The same normalised numbers, but for the gripper (never scaled here) and a step that does not move.
    for got, given in zip(batch["action"].numpy(), documented, strict=True):
        np.testing.assert_allclose(got[:15, :6], np.clip(given["action"][:, :6], -1, 1), atol=1e-5)
        np.testing.assert_allclose(got[15, :6], 0, atol=1e-5)
    torch.manual_seed(0)
    model = build_model(config, describe())
    model(batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
