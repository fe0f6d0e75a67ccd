"""Several observation steps: what past ones do, what missing ones must not do, and cached features of windows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from act_examples import ACTIONS, CHUNK, PROPRIO, description, samples, small_config, statistics
from narrow_trunk import NarrowResNet
from safetensors.torch import save_file
from tiny_runs import TINY

from vla_ft.cli import main
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.windows import build_sample
from vla_ft.deployment.acting import Actor
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError
from vla_ft.nn.clip import ClipShape, ClipVision
from vla_ft.policies.act import build_processor, load_weights
from vla_ft.policies.act import model as act_model
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.policies.base import Batch

DIMENSIONS = Dimensions(cameras=("top", "wrist"), action=ACTIONS, proprio=PROPRIO)
STEPS = 3


def network(steps: int = STEPS, seed: int = 0, **changes: Any) -> Act:
    torch.manual_seed(seed)
    return Act(small_config(observation_steps=steps, **changes), DIMENSIONS, NarrowResNet("resnet18")).eval()


def batch(missing: int = 0, count: int = 2) -> Batch:
    """Windows of three steps, the first ``missing`` of them before the episode."""
    generator = torch.Generator().manual_seed(3)
    size = (count, STEPS, 32, 64, 3)
    images = {
        f"image_{c}": torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for c in ("top", "wrist")
    }
    return {
        **images,
        "proprio": torch.randn(count, STEPS, PROPRIO, generator=generator),
        "observation_pad_mask": (torch.arange(STEPS) >= missing).expand(count, -1).clone(),
        "action": torch.randn(count, CHUNK, ACTIONS, generator=generator),
        "action_pad_mask": torch.ones(count, CHUNK, dtype=torch.bool),
    }


def changed(data: Batch, step: int) -> Batch:
    """Other images and joints in one step."""
    other = {key: value.clone() for key, value in data.items()}
    other["image_top"][:, step] = 255 - other["image_top"][:, step]
    other["proprio"][:, step] += 3
    return other


@pytest.mark.parametrize("fusion", ["none", "concat_mlp"])
@pytest.mark.parametrize("step", range(STEPS))
def test_every_step_counts_unless_it_is_missing(fusion: str, step: int) -> None:
    model = network(camera_fusion=fusion)
    data = batch()
    assert not torch.allclose(model.sample(data), model.sample(changed(data, step)), atol=1e-6)
    early = batch(missing=2)
    same = torch.equal(model.sample(early), model.sample(changed(early, step)))
    assert same == (step < 2)


def test_order_counts() -> None:
    model, data = network(), batch()
    turned = {key: value.flip(1) if value.dim() > 2 and "action" not in key else value for key, value in data.items()}
    assert not torch.allclose(model.sample(data), model.sample(turned), atol=1e-6)


def test_tokens_of_a_window() -> None:
    model = network()
    memory, positions, ignore = model.encode(batch(missing=1), torch.zeros(2, 4))
    # Latent, three times the joints, three times two cameras of one by two places.
    assert memory.shape == (2, 1 + 3 + 3 * 4, 32) and positions.shape == (1, 16, 32)
    assert ignore is not None
    assert ignore[0].int().tolist() == [0] + [1, 0, 0] + [1] * 4 + [0] * 8
    assert model.encode({k: v for k, v in batch().items() if "mask" not in k}, torch.zeros(2, 4))[2] is None


def test_a_whole_window_needs_no_mask() -> None:
    model, data = network(), batch()
    without = {key: value for key, value in data.items() if key != "observation_pad_mask"}
    torch.testing.assert_close(model.sample(data), model.sample(without), rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    model = network().train()
    model(batch(missing=1)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_one_graph_without_breaks() -> None:
    model, data = network(camera_fusion="gated"), batch(missing=1)
    noise = torch.zeros(2, 4)
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(data, noise).loss, model.loss(data, noise).loss)


def test_the_posterior_sees_the_current_joints_alone() -> None:
    model, data = network().train(), batch()
    noise = torch.zeros(2, 4)
    kl = [model.loss(one, noise).metrics["kl"] for one in (data, changed(data, 0), changed(data, 2))]
    assert torch.equal(kl[0], kl[1]) and not torch.equal(kl[0], kl[2])


def test_one_step_is_the_published_network(tmp_path: Path) -> None:
    """No further weights; and a model of several steps starts from one of one step, with new positions alone."""
    one = network(steps=1)
    assert not [name for name in one.state_dict() if "step_positions" in name]
    save_file(one.state_dict(), tmp_path / "one.safetensors")
    ledger = load_weights(network(seed=1), str(tmp_path / "one.safetensors"))
    assert ledger.new == ["step_positions.weight"]


def test_windows_of_the_processor() -> None:
    processor = build_processor(small_config(observation_steps=STEPS), description(), statistics())
    given = samples(2)
    for sample in given:
        for key, value in sample["observation"].items():
            sample["observation"][key] = np.repeat(value, STEPS, axis=0)
        sample["observation"]["pad_mask"] = np.array([False, True, True])
    collated = processor.collate(given)
    assert processor.window.observation_steps == STEPS
    assert collated["image_top"].shape == (2, STEPS, 32, 64, 3)
    assert collated["proprio"].shape == (2, STEPS, PROPRIO)
    assert collated["observation_pad_mask"].tolist() == [[False, True, True]] * 2


# --- whole runs -----------------------------------------------------------------------------------------------------


class NarrowClip(ClipVision):
    """The published input size and patches, a thirtieth of the width."""

    def __init__(self) -> None:
        super().__init__(ClipShape(width=24, heads=2, depth=1, out_channels=8))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(act_model, "ClipVision", NarrowClip)
    return


GUIDE = (
    "model.backbone=clip_vit_b32", "model.camera_fusion=concat_mlp", "model.observation_steps=3",
    "data.mock.cameras=[left,right]", "steps=4", "validation.every=2", "ema=null", "checkpoint.every=4",
)  # fmt: skip


def trained(output: Path, *words: str) -> list[dict[str, float]]:
    assert main(["train", *TINY, *GUIDE, f"output={output}", *words]) == 0
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_guides_model_from_cached_features_and_back(tmp_path: Path, narrow: None, capsys: Any) -> None:
    """CLIP frozen, fused, three observations: cached pooled features give the run that images give, and the policy acts
    from raw observations."""
    plain = trained(tmp_path / "plain")
    shown = " ".join(capsys.readouterr().out.split())
    assert "fresh (random); frozen at random: backbone" in shown
    cached = trained(tmp_path / "cached", "frozen_features.parts=[backbone]")
    losses = [[line[key] for line in run for key in line if key.endswith("loss")] for run in (plain, cached)]
    assert len(losses[0]) >= 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    stored = next((tmp_path / "cached" / "features" / "backbone").glob("*.safetensors"))
    assert stored.stat().st_size < 100_000  # eight numbers a frame and camera, no maps
    data = open_dataset(next((tmp_path / "plain").glob("mock_*")))
    predictors = [Predictor.load(tmp_path / name) for name in ("plain", "cached")]
    chunks = [acted(predictor, data) for predictor in predictors]
    np.testing.assert_allclose(chunks[0], chunks[1], rtol=1e-3, atol=1e-4)


def acted(predictor: Predictor, reader: Any) -> np.ndarray:
    """Chunks of an episode's first steps, as the dataset gives its windows and as a robot that starts would."""
    keys = predictor.processor.keys
    recorded = [build_sample(reader, 0, step, predictor.processor.window, keys) for step in range(4)]
    expected = predictor.predict_samples(recorded)
    actor = Actor(predictor)
    for step in range(4):
        frames = reader.read(0, np.array([step]), keys)
        actor.execution.reset()  # a new chunk at every step
        action = actor.step({key: value[0] for key, value in frames.items()})
        np.testing.assert_allclose(action, expected[step, 0], rtol=1e-4, atol=1e-5)
    return expected


def test_windows_of_unequal_length_are_refused(tmp_path: Path, narrow: None) -> None:
    trained(tmp_path / "run", "steps=1")
    predictor = Predictor.load(tmp_path / "run")
    image = np.zeros((2, 32, 32, 3), np.uint8)
    given = {"proprio": np.zeros((3, 14), np.float32), "image_left": image, "image_right": image}
    with pytest.raises(UserError, match="different numbers of steps"):
        predictor.predict(given)
    with pytest.raises(UserError, match=r"'proprio' is float32 \(4, 14\), expected float32 \(3, 14\)"):
        predictor.predict({**given, "proprio": np.zeros((4, 14), np.float32)})
