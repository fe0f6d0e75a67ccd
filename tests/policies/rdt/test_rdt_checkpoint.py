"""Weights in the forms that the published code writes and reads, and back."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from rdt_examples import DESCRIPTION, tiny, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.planning.imagined import plain_statistics
from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.rdt import EXPORT_FOLDERS
from vla_ft.policies.rdt.checkpoint import TOWER, load_weights
from vla_ft.policies.rdt.config import VisionConfig
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.publish import write_published
from vla_ft.policies.rdt.published_config import published_values
from vla_ft.tensor_stream import Announced, Entry


def runner_state(model: Rdt) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith(TOWER)}


def siglip_state(model: Rdt) -> dict[str, Tensor]:
    """As the hub's file has it: behind ``vision_model.``, with the pooling head and the text half."""
    tower = {f"vision_model.{k}": v.clone() for k, v in model.vision.tower.state_dict().items()}
    unused = ("vision_model.head.probe", "text_model.embeddings.token_embedding.weight", "logit_scale")
    return tower | {name: torch.zeros(2) for name in unused}


@pytest.fixture
def source() -> Rdt:
    torch.manual_seed(1)
    model = tiny_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def siglip(source: Rdt, tmp_path: Path) -> Path:
    folder = tmp_path / "siglip"
    folder.mkdir()
    save_file(siglip_state(source), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def target(siglip: Path | None) -> Rdt:
    vision = VisionConfig(
        weights=None if siglip is None else str(siglip),
        image_size=28, hidden_size=8, depth=1, heads=2, feedforward_dim=8,
    )  # fmt: skip
    return tiny_model(vision=vision)


def assert_equal(model: Rdt, source: Rdt) -> None:
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_as_the_hub_or_training_saves_it(
    source: Rdt, siglip: Path, tmp_path: Path, form: str, nested: bool
) -> None:
    folder = tmp_path / "checkpoint-1000"
    folder.mkdir()
    state = runner_state(source)
    torch.save(state, folder / form) if form.endswith(".bin") else save_file(state, folder / form)
    values = published_values(tiny())
    (folder / "config.json").write_text(json.dumps({"config": values} if nested else values))
    for path in (folder, folder / form):
        model = target(siglip)
        ledger = load_weights(model, str(path))
        assert_equal(model, source)
        assert len(ledger.loaded) == len(state) and len(ledger.unused) == 3 and not ledger.new


def test_the_published_form_is_called_as_its_export(source: Rdt, siglip: Path, tmp_path: Path) -> None:
    save_file(runner_state(source), tmp_path / "model.safetensors")
    load_weights(model := target(siglip), str(tmp_path / "model.safetensors"), "rdt")
    assert_equal(model, source)
    assert "rdt" in EXPORT_FOLDERS


def test_a_file_of_deepspeed(source: Rdt, siglip: Path, tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    # What DeepSpeed 0.14 puts beside the weights.
    beside = {"buffer_names": [], "optimizer": None, "param_shapes": [{"a": torch.Size([2])}], "global_steps": 3,
              "ds_config": {"zero_optimization": {"stage": 2}}, "ds_version": "0.14.2"}  # fmt: skip
    torch.save({"module": runner_state(source), **beside}, path)
    for layout in ("auto", "deepspeed"):
        model = target(siglip)
        load_weights(model, str(path), layout)
        assert_equal(model, source)


def test_the_configuration_of_a_checkpoint_is_a_folder_above_deepspeeds_file(
    source: Rdt, siglip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-1000"
    (folder / "pytorch_model").mkdir(parents=True)
    (folder / "ema").mkdir()
    file = folder / "pytorch_model" / "mp_rank_00_model_states.pt"
    torch.save({"module": runner_state(source)}, file)
    save_file(runner_state(source), folder / "ema" / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(published_values(tiny())))
    places = (file, file.parent, folder / "ema")
    for path in places:
        model = target(siglip)
        load_weights(model, str(path))
        assert_equal(model, source)
    (folder / "config.json").write_text(json.dumps(published_values(tiny(prediction="epsilon"))))
    for path in places:
        with pytest.raises(UserError, match=r"noise_scheduler.prediction_type 'epsilon' .here 'sample'"):
            load_weights(target(siglip), str(path))
    (folder / "config.json").write_text("{}")  # of something else
    load_weights(target(siglip), str(file))


def test_no_weights_but_the_tower(source: Rdt, siglip: Path) -> None:
    model = target(None)
    before = runner_state(model)
    ledger = load_weights(model, str(siglip))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(model.vision.tower.post_layernorm.weight, source.vision.tower.post_layernorm.weight)
    assert set(ledger.new) == set(before)


def test_our_own_file_needs_no_siglip(source: Rdt, tmp_path: Path) -> None:
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    model = target(Path("nowhere"))
    load_weights(model, str(tmp_path / "own.safetensors"))
    assert_equal(model, source)


def test_published_weights_without_a_tower_are_refused(source: Rdt, tmp_path: Path) -> None:
    save_file(runner_state(source), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"(?s)hold no image tower.*model.vision.weights"):
        load_weights(target(Path("nowhere.safetensors")), str(tmp_path))


def test_surprises_are_refused_before_anything_changes(source: Rdt, siglip: Path, tmp_path: Path) -> None:
    state = runner_state(source)
    del state["model.blocks.1.norm2.weight"]
    save_file(state, tmp_path / "model.safetensors")
    model = target(siglip)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"missing tensor 'model.blocks.1.norm2.weight'"):
        load_weights(model, str(tmp_path))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    (tmp_path / "config.json").write_text(json.dumps(published_values(tiny(heads=4))))
    with pytest.raises(UserError, match=r"num_heads 4 .here 2"):
        load_weights(model, str(tmp_path))


def test_another_number_of_heads_shows_in_the_norms(source: Rdt, siglip: Path, tmp_path: Path) -> None:
    save_file(runner_state(source), tmp_path / "model.safetensors")
    wrong = tiny_model(heads=4, vision=target(siglip).config.vision)
    with pytest.raises(UserError, match=r"q_norm.weight' has shape \(8,\), expected \(4,\)"):
        load_weights(wrong, str(tmp_path))


def test_weights_go_back_to_the_published_form(source: Rdt, siglip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    known = {"description": DESCRIPTION, "statistics": plain_statistics(DESCRIPTION), "step": 7}
    facts = TrainedFacts(config=source.config, **known)
    state, alive, most = source.state_dict(), weakref.WeakSet(), 0

    def read(entry: Entry) -> Tensor:
        nonlocal most
        value = state[entry.name].clone()
        alive.add(value)
        most = max(most, len(alive))
        return value

    entries = [Entry(name, tuple(value.shape), value.dtype) for name, value in state.items()]
    assert write_published(folder, Announced(entries, read), facts) == len(runner_state(source))
    assert most == 1, "one tensor at a time is in memory"
    assert load_file(folder / "model.safetensors").keys() == runner_state(source).keys()
    assert json.loads((folder / "config.json").read_text())["rdt"]["hidden_size"] == 16
    model = target(siglip)
    load_weights(model, str(folder))
    assert_equal(model, source)


def test_weights_are_imported_without_a_copy(source: Rdt, siglip: Path, tmp_path: Path) -> None:
    save_file(runner_state(source), tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = target(siglip)
    # What is no weight has its value by construction.
    model.vision.tower.embeddings.register_buffer("position_ids", torch.arange(4)[None], persistent=False)
    load_weights(model, str(tmp_path), assign=True)
    assert_equal(model, source)
