"""π0 through the real trainer on mock data: learning, exact resume, freezing, cached prefixes, adapters, export."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from vla_ft.config import load_run_config
from vla_ft.data.formats.rlds_writer import RldsWriter
from vla_ft.data.mock import MockConfig, write_mock
from vla_ft.data.sample import DatasetDescription
from vla_ft.deployment.evaluation import EvaluationConfig, evaluate, measure, open_data
from vla_ft.deployment.export import ExportConfig, export
from vla_ft.deployment.pizero_simpler import PiZeroInference
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError
from vla_ft.policies.pizero.checkpoint import DESCRIPTION
from vla_ft.tensor_stream import TensorReader
from vla_ft.training.trainer import train

TINY = (
    "recipe=pizero-mock", "steps=4", "batch.per_device=2", "data.workers=0", "data.mock.episodes=4",
    "data.mock.min_length=8", "data.mock.max_length=10", "validation.every=2", "validation.samples=4",
    "logging.every=1", "checkpoint.every=2", "device=cpu",
)  # fmt: skip


def run(output: Path, *words: str) -> str:
    """A run in this process; returns what it printed."""
    console = Console(file=io.StringIO(), width=120)
    train(load_run_config([*TINY, f"output={output}", *words]), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def weights(output: Path, step: int = 4) -> dict[str, torch.Tensor]:
    with TensorReader(output / "checkpoints" / f"step_{step:08d}", "model") as reader:
        return {name: reader.tensor(name) for name in reader.entries}


def test_a_run_continues_to_the_bit_and_is_evaluated(tmp_path: Path) -> None:
    both = ("ema.decay=0.9", "batch.accumulation=2")
    run(tmp_path / "whole", *both)
    run(tmp_path / "halves", "steps=2", *both)
    run(tmp_path / "halves", *both)
    expected, seen = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert expected.keys() == seen.keys() and all(torch.equal(seen[name], value) for name, value in expected.items())
    data = next((tmp_path / "whole").glob("mock_*"))
    text = evaluate(EvaluationConfig(checkpoint=str(tmp_path / "whole"), data=str(data)))
    assert "repeat" in text
    simulated = PiZeroInference(tmp_path / "whole", "widowx_bridge", device="cpu")
    assert simulated.predictor.precision == "fp32"
    simulated.reset("move to the disc")
    raw, action = simulated.step(np.zeros((48, 64, 3), np.uint8), eef_pos=np.array([0, 0, 0, 1, 0, 0, 0, 1.0]))
    assert simulated.camera == "top" and action["gripper"].item() in (1.0, -1.0)
    assert all(np.isfinite(value).all() for value in (*raw.values(), *action.values()))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    validation = next(line for line in lines if "validation/loss" in line)
    assert 0 <= validation["validation/action_within_0.1"] <= validation["validation/action_within_0.5"] <= 1


def test_a_run_acts_in_the_precision_that_it_was_trained_in(tmp_path: Path) -> None:
    run(tmp_path, "steps=1", "precision=bf16", "validation.every=1", "checkpoint.every=1")
    predictor = PiZeroInference(tmp_path, "widowx_bridge", device="cpu").predictor
    assert predictor.precision == "bf16"
    assert {value.dtype for value in predictor.model.parameters()} == {torch.float32}


def test_freezing_and_cached_prefixes_give_the_same_run(tmp_path: Path) -> None:
    printed = run(tmp_path / "frozen", "freeze=[vlm]")
    assert "Number of trained parameters (Action): 0.000B" in printed
    assert "(VLM)" not in printed and "did not work" in printed and "knows no language" in printed
    run(tmp_path / "cached", "freeze=[vlm]", "frozen_features.parts=[vlm]")
    assert losses(tmp_path / "cached") == losses(tmp_path / "frozen")
    expected, seen = weights(tmp_path / "frozen"), weights(tmp_path / "cached")
    assert all(torch.equal(seen[name], value) for name, value in expected.items())
    start = weights(tmp_path / "frozen", 2)
    moved = {name.partition(".")[0] for name, value in expected.items() if not torch.equal(value, start[name])}
    assert moved == {"experts", "action_encoder", "action_decoder", "proprio_encoder"}
    with TensorReader(tmp_path / "frozen" / "checkpoints" / "step_00000004", "optimizer") as reader:
        assert not any("vlm." in name for name in reader.entries)


def test_adapters_are_trained_kept_and_merged(tmp_path: Path) -> None:
    printed = run(tmp_path / "lora", "lora.vlm.rank=2")
    assert "vlm's own weights, under adapters" in printed
    kept = weights(tmp_path / "lora")
    earlier = weights(tmp_path / "lora", 2)  # a held-out evaluation lies between them
    base = [name for name in kept if ".base_layer." in name]
    assert base and all(torch.equal(kept[name], earlier[name]) for name in base), "evaluation merges nothing"
    assert any(not torch.equal(kept[name], earlier[name]) for name in kept if ".lora_B." in name)
    ups = [value for name, value in kept.items() if ".lora_B." in name]
    assert len(ups) == 2 * 6 + 1 + 7 + 2  # SigLIP's layers, projector, a layer of Gemma, queries and keys
    assert sum(bool(value.any()) for value in ups) == len(ups) - 1, "only the last layer's queries have no gradient"
    said = export(ExportConfig(checkpoint=str(tmp_path / "lora"), output=str(tmp_path / "merged.safetensors")))
    assert "adapters of vlm merged" in said


def published_weights_are_evaluated(output: Path, weights: Path) -> None:
    """A published file with the statistics beside it predicts what the run does, in every dimension."""
    file = weights.with_name(f"{weights.stem}_statistics.json")
    data, settings = str(next(output.glob("mock_*"))), {"tokenizer": "stand-in"}
    own = Predictor.load(output)
    published = Predictor.load(weights, statistics=file, camera="top", settings=settings)
    for part in ("action_names", "action_units", "action_kind", "action_mode", "gripper_dims", "proprio_names", "fps"):
        assert getattr(published.description, part) == getattr(own.description, part), part
    random = np.random.default_rng(0)
    seen = {
        "image_top": random.integers(0, 256, (28, 28, 3), dtype=np.uint8),
        "proprio": random.uniform(-0.5, 0.5, 7).astype(np.float32),
    }
    chunks = []
    for predictor in (own, published):
        torch.manual_seed(0)
        chunks.append(predictor.predict(seen, "move to the disc"))
    assert chunks[0].shape == (4, 7)
    np.testing.assert_allclose(chunks[1], chunks[0], rtol=1e-4, atol=1e-6)
    config = {"checkpoint": str(weights), "data": data, "statistics": str(file), "camera": "top", "model": settings}
    assert measure(EvaluationConfig(**config, episodes="all", samples=4))["policy_mean"] > 0
    words = {"checkpoint": str(weights), "data": data}
    with pytest.raises(UserError, match=r"holds weights alone\. Give statistics="):
        measure(EvaluationConfig(**words))
    with pytest.raises(UserError, match=r"Unknown camera 'primary'\. Known: top\."):
        measure(EvaluationConfig(**words, statistics=str(file), model={"tokenizer": "stand-in"}))


def pictures_of_a_dataset_are_resized_and_chosen(weights: Path, folder: Path) -> None:
    """Two cameras of another size: the named one is read, at the size of the weights."""
    mock = MockConfig(
        episodes=2, min_length=6, max_length=8, cameras=("front", "wrist"), image_size=(48, 64), action_dim=7,
        format="npz",
    )  # fmt: skip
    config = EvaluationConfig(
        checkpoint=str(weights),
        data=str(write_mock(folder, mock)),
        statistics=str(weights.with_name(f"{weights.stem}_statistics.json")),
        camera="front",
        model={"tokenizer": "stand-in"},
        episodes="all",
        samples=4,
    )
    assert measure(config)["policy_mean"] > 0
    with pytest.raises(UserError, match=r"Unknown camera 'side'\. Known: front, wrist\."):
        measure(replace(config, camera="side"))


def without_description(weights: Path, to: Path) -> Path:
    """The file as others publish them: it says nothing of its robot."""
    content = torch.load(weights, weights_only=True)
    del content[DESCRIPTION]
    torch.save(content, to)
    return to


def rlds_of_bridge_is_read_in_its_standard_form(words: dict[str, Any], folder: Path) -> None:
    """As its website has it: two cameras with numbers for names, and commands in place of achieved movement."""
    numbers = tuple("abcdefg")
    about = DatasetDescription(
        name="bridge_dataset", cameras={"0": (32, 40), "1": (32, 40)}, action_names=numbers, action_units=("",) * 7,
        proprio_names=numbers, proprio_units=("",) * 7, action_kind="end_effector", action_mode="delta", gripper="",
        fps=5.0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    states, picture = random.normal(size=(10, 7)).astype(np.float32), np.zeros((32, 40, 3), np.uint8)
    writer = RldsWriter(folder / "bridge_dataset", about)
    common = {"action": np.ones(7, np.float32), "image_0": picture, "image_1": picture}
    writer.add([{**common, "proprio": state} for state in states], "fold the cloth")
    writer.finish()
    data, words = str(folder / "bridge_dataset"), {**words, "camera": "primary"}
    predictor = Predictor.load(
        Path(words["checkpoint"]), statistics=Path(words["statistics"]), settings=words["model"], camera="primary"
    )
    reader = open_data(predictor, data, None)
    assert reader.lengths.tolist() == [9] and reader.description.cameras == {"primary": (28, 28)}
    moved = reader.read(0, np.arange(9), ("action",))["action"]
    np.testing.assert_allclose(moved[:, :6], np.diff(states[:, :6], axis=0), atol=1e-6)
    assert measure(EvaluationConfig(**words, data=data, episodes="all", samples=4))["policy_mean"] > 0


def a_file_that_says_nothing_is_of_bridge(weights: Path, folder: Path, data: str) -> None:
    """With 7 and 7 dimensions it moves an end effector: joints are refused. Other widths are not guessed."""
    statistics = weights.with_name(f"{weights.stem}_statistics.json")
    bare = without_description(weights, folder / "bare.pt")
    settings = {"tokenizer": "stand-in"}
    about = Predictor.load(bare, statistics=statistics, camera="top", settings=settings).description
    assert (about.name, about.action_kind, about.gripper_dims) == ("bridge_dataset", "end_effector", (6,))
    config = {"checkpoint": str(bare), "statistics": str(statistics), "camera": "top", "model": settings}
    with pytest.raises(UserError, match="action_kind end_effector, this dataset has joint"):
        measure(EvaluationConfig(**config, data=data, episodes="all", samples=4))
    rlds_of_bridge_is_read_in_its_standard_form(config, folder)
    wide = json.loads(statistics.read_text())
    wide["action"] = {name: values * 2 for name, values in wide["action"].items()}
    (folder / "wide.json").write_text(json.dumps(wide))
    with pytest.raises(UserError, match=r"does not say which of its 14 actions .* are grippers"):
        Predictor.load(bare, statistics=folder / "wide.json", settings=settings)
    with pytest.raises(UserError, match=r"have 14 action and 7 proprio dimensions, .* was trained on 7 and 7"):
        Predictor.load(weights, statistics=folder / "wide.json", settings=settings)


def test_weights_go_out_in_the_published_layout_and_start_another_run(tmp_path: Path) -> None:
    run(tmp_path / "first", "steps=2")
    files = {"open-pi-zero": tmp_path / "step2.pt", "safetensors": tmp_path / "own.safetensors"}
    for layout, file in files.items():
        said = export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(file), format=layout))
        assert (str(tmp_path / "step2_statistics.json") in said) == (layout == "open-pi-zero")
        output = tmp_path / f"from {layout}"
        printed = run(output, f"init.path={file}", "steps=2", "seed=1")
        assert losses(output) != losses(tmp_path / "first") and "step 1/2" in printed, "counters start afresh"
        with pytest.raises(UserError, match=r"model\.time_period=100 \(here 10000\)"):
            run(tmp_path / "wrong", f"init.path={file}", "model.time_period=10000")
    assert losses(tmp_path / "from open-pi-zero") == losses(tmp_path / "from safetensors")
    weights, data = files["open-pi-zero"], str(next((tmp_path / "first").glob("mock_*")))
    published_weights_are_evaluated(tmp_path / "first", weights)
    pictures_of_a_dataset_are_resized_and_chosen(weights, tmp_path)
    a_file_that_says_nothing_is_of_bridge(weights, tmp_path, data)
    with pytest.raises(UserError, match=r"step2_statistics\.json exists already"):
        weights.rename(tmp_path / "elsewhere.pt")
        export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(weights), format="open-pi-zero"))
    with pytest.raises(UserError, match="Did you mean 'open-pi-zero'"):
        export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(tmp_path / "a.pt"), format="open-pizero"))
    with pytest.raises(UserError, match=r"must end in \.pt"):
        output = str(tmp_path / "a.safetensors")
        export(ExportConfig(checkpoint=str(tmp_path / "first"), output=output, format="open-pi-zero"))
