"""A fine-tuned RDT on the robot is the run that was trained: its rate, its precision, its embeddings, its data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rdt_examples import tiny
from safetensors.torch import save_file

from vla_ft.config import load_run_config
from vla_ft.data.mock import MockConfig, write_mock
from vla_ft.data.sample import DatasetDescription
from vla_ft.deployment.predictor import Predictor
from vla_ft.deployment.rdt_step import RoboticDiffusionTransformerModel
from vla_ft.errors import UserError
from vla_ft.planning.imagined import plain_statistics
from vla_ft.policies.rdt.checkpoint import TOWER
from vla_ft.policies.rdt.config import Config, LanguageConfig, VisionConfig
from vla_ft.policies.rdt.language import EmbeddingStore
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.processing import RdtProcessor
from vla_ft.training.trainer import train

RATES = {"slow": 10, "fast": 25}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step on two sets, registered with the three published JSON files, in bfloat16."""
    root = tmp_path_factory.mktemp("registered")
    for seed, name in enumerate(RATES):
        made = MockConfig(
            episodes=2, min_length=8, max_length=9, image_size=(16, 16), cameras=("top", "wrist"), seed=seed
        )
        write_mock(root, made).rename(root / name)
    files = {"finetune_datasets": list(RATES), "dataset_control_freq": RATES, "finetune_sample_weights": {"slow": 2}}
    for name, content in files.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    words = (
        "recipe=rdt-mock", f"data.path={root}", f"data.mix={root}", f"output={root / 'run'}", "steps=1",
        "batch.per_device=2", "data.workers=0", "model.hidden_size=16", "model.depth=2", "model.heads=2",
        "model.chunk_size=4", "model.vision.hidden_size=8", "data.validation_fraction=0", "precision=bf16",
    )  # fmt: skip
    train(load_run_config(list(words)))
    return root / "run"


@pytest.mark.parametrize("name", list(RATES))
def test_a_set_of_several_is_driven_at_its_own_rate(run: Path, name: str) -> None:
    predictor = Predictor.load(run, dataset=name)
    assert predictor.description.fps == RATES[name]
    policy = RoboticDiffusionTransformerModel.of_run(run, dataset=name, device="cpu")
    assert policy.control_frequency == RATES[name]
    sample = predictor.sample_of(
        {"proprio": np.zeros(14), **{f"image_{c}": np.zeros((16, 16, 3), np.uint8) for c in ("top", "wrist")}}, "go"
    )
    assert predictor.processor.collate([sample])["ctrl_freq"].tolist() == [RATES[name]]


def test_of_several_sets_one_must_be_named(run: Path) -> None:
    with pytest.raises(UserError, match="A mixture of slow, fast: say"):
        RoboticDiffusionTransformerModel.of_run(run)


def test_step_computes_in_the_precision_of_the_run(run: Path) -> None:
    predictor = Predictor.load(run, dataset="slow")
    torch.nn.init.normal_(predictor.model.model.final_layer.ffn_final.fc2.weight)
    rng = np.random.default_rng(0)
    pictures = {f"image_{c}": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8) for c in ("top", "wrist")}
    torch.manual_seed(3)
    expected = predictor.predict({"proprio": np.full(14, 0.2, np.float32), **pictures}, "go")
    found = {}
    for precision in ("run", "fp32"):
        policy = RoboticDiffusionTransformerModel.of_run(run, dataset="slow", precision=precision, device="cpu")
        policy.model.load_state_dict(predictor.model.state_dict())
        torch.manual_seed(3)
        seen = [None, None, None, pictures["image_top"], pictures["image_wrist"], None]
        found[precision] = policy.step(np.full(14, 0.2), seen, "go")[0].numpy()
    assert predictor.precision == "bf16"
    off = {name: np.abs(value - expected).max() for name, value in found.items()}
    assert off["run"] < 1e-6 < 1e-4 < off["fp32"]


def test_the_robot_has_its_own_place_for_embeddings(run: Path, tmp_path: Path) -> None:
    model = Rdt(tiny(language=LanguageConfig(encoder="t5", embeddings="/trainer", width=12, max_tokens=16)))
    EmbeddingStore(tmp_path, "t5", "1").put("go", torch.ones(2, 12))
    policy = RoboticDiffusionTransformerModel(model, device="cpu", embeddings=tmp_path)
    assert policy.language.get("go").shape == (2, 12)
    named = RoboticDiffusionTransformerModel.of_run(run, dataset="fast", device="cpu", embeddings=tmp_path)
    assert named.language.config.embeddings == str(tmp_path)
    assert named.description is not None and named.description.cameras == {"top": (16, 16), "wrist": (16, 16)}


@pytest.mark.parametrize(("configured", "told"), [(None, 50), (0, 0), (10, 10)])
def test_an_unknown_rate_stays_unknown(
    run: Path, monkeypatch: pytest.MonkeyPatch, configured: int | None, told: int
) -> None:
    """0 is a rate that training may have been told: the robot and training ask the same function."""
    config = tiny(control_frequency=configured)
    description = DatasetDescription.from_json({**Predictor.load(run, dataset="slow").description.to_json(), "fps": 50})
    processor = RdtProcessor(config, description, plain_statistics(description))
    assert processor.rate == told
    predictor = Predictor.load(run, dataset="slow")
    predictor.config = dataclasses.replace(predictor.config, model=config)
    predictor.description = description
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: predictor)
    assert RoboticDiffusionTransformerModel.of_run(run, device="cpu").control_frequency == told
    assert RoboticDiffusionTransformerModel.of_run(run, device="cpu", control_frequency=5).control_frequency == 5


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Config, Rdt]:
    """Weights as the hub has them, with a SigLIP beside, and the model that they are of."""
    torch.manual_seed(1)
    source = Rdt(tiny())
    torch.nn.init.normal_(source.model.final_layer.ffn_final.fc2.weight)
    state = source.state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith(TOWER)}, tmp_path / "rdt.safetensors")
    tower = {f"vision_model.{k.removeprefix(TOWER)}": v for k, v in state.items() if k.startswith(TOWER)}
    save_file(tower, tmp_path / "siglip.safetensors")
    vision = VisionConfig(
        weights=str(tmp_path / "siglip.safetensors"), image_size=28, hidden_size=8, depth=1, heads=2, feedforward_dim=8
    )
    return tmp_path / "rdt.safetensors", tiny(vision=vision, control_frequency=None), source


def test_published_weights_are_taken_as_they_are(
    published: tuple[Path, Config, Rdt], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config, source = published
    monkeypatch.setattr(torch.nn.init, "xavier_uniform_", lambda value, *_: pytest.fail() if not value.is_meta else 0)
    policies = {
        name: RoboticDiffusionTransformerModel.of_published(str(path), config, precision=name, device="cpu")
        for name in ("fp32", "bf16")
    }
    for name, value in source.state_dict().items():
        assert torch.equal(policies["fp32"].model.state_dict()[name], value), name
    assert {p.dtype for p in policies["bf16"].model.parameters()} == {torch.bfloat16}
    reference = RoboticDiffusionTransformerModel(source, device="cpu")
    chunks = {}
    for name, policy in {"source": reference, **policies}.items():
        torch.manual_seed(3)
        chunks[name] = policy.step(np.full(14, 0.2), [None] * 3 + [np.full((9, 9, 3), 40, np.uint8)] * 3, "go")
    assert torch.equal(chunks["fp32"], chunks["source"])
    scale = chunks["source"].abs().max()
    assert 1e-4 * scale < (chunks["bf16"] - chunks["source"]).abs().max() < 0.05 * scale


def test_published_weights_without_a_tower_are_refused(published: tuple[Path, Config, Rdt]) -> None:
    path, _, _ = published
    with pytest.raises(UserError, match=r"does not hold the whole model: .*vision.tower.*model.vision.weights"):
        RoboticDiffusionTransformerModel.of_published(str(path), tiny(), device="cpu")


@pytest.mark.parametrize(("configured", "told"), [(None, 25), (0, 0), (50, 50)])
def test_published_weights_are_told_the_configured_rate(
    published: tuple[Path, Config, Rdt], configured: int | None, told: int
) -> None:
    path, config, _ = published
    config = Config(**{**vars(config), "control_frequency": configured})
    policy = RoboticDiffusionTransformerModel.of_published(str(path), config, device="cpu")
    assert policy.control_frequency == told
