"""Importing π0's weights from files: what is refused, and what is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pizero_examples import batch, description, model, small_config, statistics
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.pizero import build_model, build_processor, load_weights, open_published_file
from vla_ft.policies.pizero.checkpoint import write_published
from vla_ft.policies.pizero.layouts import constants, published_names
from vla_ft.policies.pizero.model import PiZero
from vla_ft.policies.pizero.publish import write_run


def published(one: PiZero, prefix: str = "") -> dict[str, Tensor]:
    tied = one.config.tie_experts
    names = {name: list(published_names(name, tied)) for name in one.state_dict()}
    return {prefix + key: one.state_dict()[name].clone() for name, keys in names.items() for key in keys}


@pytest.mark.parametrize("changes", [{}, {"tie_experts": False}, {"adaptive": "adaLN-Zero"}])
def test_published_layout_and_back(changes: dict[str, object], tmp_path: Path) -> None:
    source, target = model(**changes), model(seed=1, **changes)
    count = write_published(tmp_path / "step7.pt", source.state_dict().items(), source.config, step=7)
    ledger = load_weights(target, str(tmp_path / "step7.pt"))
    assert count == len(published(source)) and ledger.notes == []
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert list(tmp_path.iterdir()) == [tmp_path / "step7.pt"], "nothing half-written stays"


def test_a_file_says_what_its_robot_is(tmp_path: Path) -> None:
    """Two arms with a gripper each, trained on two datasets: the statistics of each lie beside the weights."""
    names = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in (*"abcdef", "gripper"))
    about = description(
        action_names=names, action_units=("rad",) * 14, proprio_names=names, proprio_units=("rad",) * 14,
        action_kind="joint", action_mode="absolute", gripper_dims=(6, 13), rates={"fold": 50.0, "wipe": 25.0},
    )  # fmt: skip
    parts = {name: dataclasses.replace(statistics(about), episodes=number) for number, name in enumerate(about.rates)}
    config = small_config()
    facts = TrainedFacts(
        config=config,
        description=about,
        statistics=DatasetStatistics(features={}, source_hash="", parts=parts),
        step=7,
        start=None,
    )
    write_run(tmp_path / "step7.pt", build_model(config, about).state_dict().items(), facts)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"step7.pt", "step7_statistics_fold.json", "step7_statistics_wipe.json"}
    found = open_published_file(tmp_path / "step7.pt", tmp_path / "step7_statistics_wipe.json", "top", {})
    assert found is not None and found.statistics.episodes == 1 and found.names_known
    assert found.standardization is None, "no published dataset's form is put on data of another robot"
    assert found.description == dataclasses.replace(about, cameras={"top": (28, 28)})
    processor = build_processor(config, found.description, found.statistics)
    chunk = processor.unnormalize(torch.full((1, 4, 14), 0.5))[0]
    grippers = np.isin(np.arange(14), (6, 13))  # 0 and 1 as they are; the others between the quantiles 1 and 3
    np.testing.assert_allclose(chunk, np.broadcast_to(np.where(grippers, 0.5, 2.5), (4, 14)), atol=1e-6)


def test_own_layout_with_its_constants(tmp_path: Path) -> None:
    source = model(expert_rope_theta=500.0)
    metadata = {"constants": json.dumps(constants(source.config))}
    save_file(source.state_dict(), tmp_path / "own.safetensors", metadata=metadata)
    target = model(seed=1, expert_rope_theta=500.0)
    ledger = load_weights(target, str(tmp_path / "own.safetensors"))
    assert ledger.notes == [] and len(ledger.loaded) == len(source.state_dict())
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(UserError, match=r"model\.expert_rope_theta=500 \(here 100\)"):
        load_weights(model(seed=1), str(tmp_path / "own.safetensors"))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    save_file(source.state_dict(), tmp_path / "bare.safetensors")
    assert "taken from the configuration" in load_weights(model(seed=1), str(tmp_path / "bare.safetensors")).notes[0]


def test_a_plain_state_dict_with_compiled_names(tmp_path: Path) -> None:
    source, target = model(), model(seed=1, constants_confirmed=True)
    torch.save(published(source, "_orig_mod."), tmp_path / "weights.pt")
    with pytest.raises(
        UserError, match=r"10000 and model\.time_period=10000, open-pi-zero's training files 100 and 100"
    ):
        load_weights(model(), str(tmp_path / "weights.pt"), "open-pi-zero")
    load_weights(target, str(tmp_path / "weights.pt"), "open-pi-zero")
    torch.manual_seed(0)
    expected = source(batch()).loss
    torch.manual_seed(0)
    assert torch.equal(target(batch()).loss, expected)


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ('{"time_period": 100.0}', "without vlm_rope_theta, expert_rope_theta, soft_cap"),
        ('{"time_period": 100.0', "cannot be read"),
        ("[100.0]", "without vlm_rope_theta"),
    ],
)
def test_damaged_constants_are_told(recorded: str, message: str, tmp_path: Path) -> None:
    save_file(model().state_dict(), tmp_path / "own.safetensors", metadata={"constants": recorded})
    with pytest.raises(UserError, match=message):
        load_weights(model(seed=1), str(tmp_path / "own.safetensors"))


@pytest.mark.parametrize(
    "key",
    [
        "paligemma_with_expert.paligemma.model.language_model.norm.weight",
        "model.paligemma_with_expert.gemma_expert.model.norm.weight",
        "action_time_mlp_in.weight",
        "model.action_in_proj.weight",
    ],
)
def test_openpi_is_refused_by_name(key: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(2), "action_out_proj.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"π0 of openpi.*runs the other way \(1 is noise\)"):
        load_weights(model(), str(tmp_path))


@pytest.mark.parametrize("file", ["params/_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_openpi_in_jax_is_refused_by_name(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    with pytest.raises(UserError, match="π0 of openpi"):
        load_weights(model(), str(tmp_path))


def test_adapters_are_refused_with_the_reason(tmp_path: Path) -> None:
    state = published(model()) | {"multi_modal_projector.linear.lora_A": torch.zeros(2, 16)}
    torch.save({"model": state}, tmp_path / "step1.pt")
    with pytest.raises(UserError, match="merge them with its own code"):
        load_weights(model(), str(tmp_path / "step1.pt"))


def test_surprises_are_refused_before_anything_changes(tmp_path: Path) -> None:
    target = model(seed=1, constants_confirmed=True)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    for change, message in (
        ({"action_decoder.scale": torch.zeros(1)}, "unknown tensor"),
        ({"action_decoder.bias": torch.zeros(9)}, r"has shape \(9,\), expected \(7,\)"),
    ):
        torch.save({"model": published(model()) | change}, tmp_path / "step1.pt")
        with pytest.raises(UserError, match=message):
            load_weights(target, str(tmp_path / "step1.pt"))
    state = published(model())
    del state["proprio_encoder.bias"]
    torch.save({"model": state}, tmp_path / "step1.pt")
    with pytest.raises(UserError, match=r"missing tensor 'proprio_encoder\.bias'"):
        load_weights(target, str(tmp_path / "step1.pt"))
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_layouts_are_named(tmp_path: Path) -> None:
    torch.save({"model": published(model())}, tmp_path / "step1.pt")
    with pytest.raises(UserError, match="has the layout 'open-pi-zero', not 'paligemma'"):
        load_weights(model(), str(tmp_path / "step1.pt"), "paligemma")
    with pytest.raises(UserError, match="Did you mean 'paligemma'"):
        load_weights(model(), str(tmp_path / "step1.pt"), "paligema")
    with pytest.raises(UserError, match="Choose policy 'pizero'"):
        load_weights(nn.Linear(1, 1), str(tmp_path / "step1.pt"))
    save_file({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(UserError, match="neither π0 nor PaliGemma"):
        load_weights(model(), str(tmp_path / "resnet.safetensors"))
    torch.save({"state": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="expected a plain state dict"):
        load_weights(model(), str(tmp_path / "other.pt"))
