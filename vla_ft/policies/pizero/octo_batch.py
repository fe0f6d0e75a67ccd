"""The batches of open-pi-zero's data loader (Octo's form), and what π0 reads of them.

Keys and shapes: ``observation``: ``image_primary`` uint8 [B, W, H, W', 3], ``proprio`` float32 [B, W, P], ``timestep``
int32 [B, W], ``timestep_pad_mask`` bool [B, W], ``task_completed`` bool [B, W, K], ``pad_mask_dict`` of bool [B, W];
``task``: ``language_instruction``, B texts or bytes; ``action`` float32 and ``action_pad_mask`` bool [B, W, K, A];
``dataset_name``, B texts or bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vla_ft.data.chunks import dimension_mask, task_completed
from vla_ft.data.noise import INSTRUCTIONS, random_numbers, random_picture
from vla_ft.data.sample import IMAGE_PREFIX, Sample
from vla_ft.errors import UserError
from vla_ft.policies.pizero.tokenizer import as_text

_MASKED = ("image_primary", "proprio", "timestep")
_LATEST = 100
_NAME = "dummy_dataset"


def random_octo_batch(
    random: np.random.Generator,
    batch_size: int,
    *,
    action_dim: int,
    proprio_dim: int,
    horizon: int = 4,
    window: int = 1,
    image_size: tuple[int, int] = (224, 224),
) -> dict[str, Any]:
    """A batch with every key, drawn at random: what a published guide trains on to test a pipeline.

    The widths are the recipe's; instructions are bytes and dataset names text, as there.
    """
    steps = (batch_size, window)
    seen = np.ones(steps, dtype=bool)
    instructions = random.choice(np.array(INSTRUCTIONS), batch_size)
    return {
        "observation": {
            "image_primary": random_picture(random, *steps, *image_size, 3),
            "proprio": random_numbers(random, *steps, proprio_dim),
            "timestep": random.integers(0, _LATEST, steps, dtype=np.int32),
            "pad_mask_dict": {key: seen.copy() for key in _MASKED},
            "timestep_pad_mask": seen.copy(),
            "task_completed": random.integers(0, 2, (*steps, horizon)).astype(bool),
        },
        "task": {"language_instruction": [str(text).encode() for text in instructions]},
        "action": random_numbers(random, *steps, horizon, action_dim),
        "action_pad_mask": np.ones((*steps, horizon, action_dim), dtype=bool),
        "dataset_name": [_NAME] * batch_size,
    }


def generate_fake_batch(
    batch_size: int = 8,
    window: int = 1,
    horizon: int = 4,
    action_dim: int = 7,
    proprio_dim: int = 8,
    height: int = 224,
    width: int = 224,
) -> dict[str, Any]:
    """``random_octo_batch`` under the guide's name and arguments: torch tensors, drawn by torch's default generator."""
    random = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
    sizes = {"action_dim": action_dim, "proprio_dim": proprio_dim, "horizon": horizon, "window": window}
    return _tensors(random_octo_batch(random, batch_size, image_size=(height, width), **sizes))


def octo_batch_of(samples: Sequence[Sample], camera: str = "primary") -> dict[str, Any]:
    """Our samples as such a batch, for code that reads open-pi-zero's, with its masks of what lies past an episode.

    Instructions and names are bytes, as its loader gives them. The inverse of ``samples_of`` but for its masks, which
    trail the end by one step (``task_completed``). Raises UserError for a window of several steps.
    """
    seen = [sample["observation"] for sample in samples]
    if any(len(one["timestep"]) != 1 for one in seen):
        raise UserError("The samples have several observation steps, this batch is for one (window_size: 1).")
    real = np.stack([sample["action_pad_mask"] for sample in samples])[:, None]
    action = np.stack([sample["action"] for sample in samples])[:, None]
    inside = np.stack([one["pad_mask"] for one in seen])
    return {
        "observation": {
            "image_primary": np.stack([one[IMAGE_PREFIX + camera] for one in seen]),
            "proprio": np.stack([one["proprio"] for one in seen]),
            "timestep": np.stack([one["timestep"] for one in seen]),
            "pad_mask_dict": {key: np.ones_like(inside) for key in _MASKED},
            "timestep_pad_mask": inside,
            "task_completed": task_completed(real),
        },
        "task": {
            "language_instruction": [sample["task"]["language_instruction"].encode() for sample in samples],
            "pad_mask_dict": {
                "language_instruction": np.array([bool(sample["task"]["language_instruction"]) for sample in samples])
            },
        },
        "action": action,
        "action_pad_mask": dimension_mask(real, action.shape[-1]),
        "dataset_name": [sample["dataset_name"].encode() for sample in samples],
    }


def samples_of(batch: dict[str, Any], camera: str = "primary") -> list[Sample]:
    """The samples of such a batch, as our own loader gives them. Raises UserError for windows of several steps.

    open-pi-zero reads picture, proprioception, action and instruction of them, and nothing else.
    """
    observation, action = batch["observation"], np.asarray(batch["action"])
    if action.ndim != 4 or action.shape[1] != 1:
        raise UserError(f"action has shape {action.shape}, expected [B, 1, K, A]: π0 sees one step (window_size: 1).")
    samples = []
    for row, instruction in enumerate(batch["task"]["language_instruction"]):
        seen = {IMAGE_PREFIX + camera: "image_primary", "proprio": "proprio", "timestep": "timestep"}
        arrays = {key: np.asarray(observation[theirs])[row] for key, theirs in seen.items()}
        samples.append(
            Sample(
                observation=arrays | {"pad_mask": np.asarray(observation["timestep_pad_mask"])[row]},
                action=action[row, 0],
                action_pad_mask=np.asarray(batch["action_pad_mask"])[row, 0].any(axis=-1),
                task={"language_instruction": as_text(instruction)},
                dataset_name=as_text(batch["dataset_name"][row]),
            )
        )
    return samples


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tensors(one) for key, one in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
