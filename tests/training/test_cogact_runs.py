"""CogACT through the real trainer on mock data: learning, exact resume, freezing, cached features, evaluation."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from vla_ft.config import load_run_config
from vla_ft.deployment.evaluation import EvaluationConfig, evaluate
from vla_ft.policies.cogact.model import CogAct
from vla_ft.policies.cogact.prompts import Prompts
from vla_ft.tensor_stream import TensorReader
from vla_ft.training.trainer import train

TINY = (
    "recipe=cogact-mock", "steps=4", "batch.per_device=2", "data.workers=0", "data.mock.episodes=4",
    "data.mock.min_length=8", "data.mock.max_length=10", "validation.every=2", "validation.samples=4",
    "logging.every=1", "checkpoint.every=2", "device=cpu", "model.image_size=28", "data.image_size=[28,28]",
    "model.num_ddim_steps=2",
)  # fmt: skip
FROZEN = "freeze=[vision,projector,llm]"


def run(output: Path, *words: str) -> str:
    """A run in this process; returns what it printed."""
    console = Console(file=io.StringIO(), width=120)
    train(load_run_config([*TINY, f"output={output}", *words]), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def losses(output: Path, key: str = "train/loss") -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def weights(output: Path, step: int = 4) -> dict[str, torch.Tensor]:
    with TensorReader(output / "checkpoints" / f"step_{step:08d}", "model") as reader:
        return {name: reader.tensor(name) for name in reader.entries}


def test_a_run_continues_to_the_bit_and_is_evaluated(tmp_path: Path) -> None:
    both = ("ema.decay=0.9", "batch.accumulation=2", "schedule.name=cosine", "schedule.warmup_steps=1")
    printed = run(tmp_path / "whole", *both)
    assert "Finalized Training Setup" in printed and "Global (Effective) Batch Size = 4" in printed
    run(tmp_path / "split", *both)
    folder = tmp_path / "split" / "checkpoints"
    (folder / "latest").write_text("step_00000002")
    run(tmp_path / "split", *both)
    expected, seen = weights(tmp_path / "whole"), weights(tmp_path / "split")
    assert expected.keys() == seen.keys() and all(torch.equal(seen[name], value) for name, value in expected.items())
    data = next((tmp_path / "whole").glob("mock_*"))
    text = evaluate(EvaluationConfig(checkpoint=str(tmp_path / "whole"), data=str(data), samples=8))
    assert "repeat last action" in text
    assert len(losses(tmp_path / "whole", "validation/loss")) == 2


def test_cached_features_train_the_head_to_the_same_weights(tmp_path: Path) -> None:
    run(tmp_path / "frozen", FROZEN)
    run(tmp_path / "cached", FROZEN, "frozen_features.parts=[vlm]")
    assert losses(tmp_path / "cached") == losses(tmp_path / "frozen")
    expected, seen = weights(tmp_path / "frozen"), weights(tmp_path / "cached")
    assert expected.keys() == seen.keys() and all(torch.equal(seen[name], value) for name, value in expected.items())
    start = weights(tmp_path / "frozen", 2)
    assert {name.partition(".")[0] for name in start if not torch.equal(start[name], expected[name])} == {"head"}


def discs(count: int, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of a disc uint8 [N, S, S, 3], and its place as actions in [-1, 1], float32 [N, 1, 2]."""
    places = np.random.default_rng(0).uniform(-1, 1, (count, 2)).astype(np.float32)
    rows, columns = np.mgrid[:size, :size]
    pictures = np.full((count, size, size, 3), 90, np.uint8)
    for picture, (y, x) in zip(pictures, (0.35 * places + 0.5) * size, strict=True):
        picture[(rows - y) ** 2 + (columns - x) ** 2 < (size / 6) ** 2] = (220, 40, 40)
    return torch.from_numpy(pictures), torch.from_numpy(places).unsqueeze(1)


@pytest.mark.nightly
def test_the_picture_is_learned_through_all_parts() -> None:
    """From random weights the loss falls below what another's picture allows in as many steps: 0.263 against 0.364 when
    the bound was set. That this can be learned, not that it always is: from seed 1 the loss with its own pictures was
    still 0.345 after 700 steps, 0.344 with another's, and 0.359 after 1,600."""
    pictures, actions = discs(512)
    words = ["recipe=cogact-mock", "model.image_size=28", "model.future_action_window_size=0"]
    config = load_run_config(words).model
    tokens = torch.tensor([Prompts(config)("move to the disc")])

    def last_losses(shift: int, steps: int = 700) -> float:
        torch.manual_seed(0)
        model = CogAct(config, 2).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0)
        seen = []
        for _ in range(steps):
            chosen = torch.randint(len(pictures), (16,))
            batch = {
                "image": pictures[chosen].roll(shift, 0),
                "tokens": tokens.expand(16, -1),
                "token_mask": torch.ones(16, tokens.shape[1], dtype=torch.bool),
                "action": actions[chosen],
            }
            optimizer.zero_grad()
            loss = model(batch).loss
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return float(np.mean(seen[-50:]))

    own, other = last_losses(shift=0), last_losses(shift=1)
    assert own < 0.8 * other, f"{own:.3f} against {other:.3f}"
