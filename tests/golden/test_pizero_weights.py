"""π0's weights under every published name: strict key tables, exact counts, and a whole small file of each kind."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

import golden_files
import pytest
import torch
from pizero_models import base, build, inputs, read_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.policies.ledger import plan_import
from vla_ft.policies.pizero.checkpoint import load_weights, write_published
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.layouts import detect_layout, published_names, rename_for
from vla_ft.policies.pizero.model import Dimensions, PiZero
from vla_ft.training.preparation import prepare_model


def full_size(**changes: Any) -> PiZero:
    """The published sizes without numbers."""
    with torch.device("meta"):
        return PiZero(Config(**changes), Dimensions(action=7, proprio=changes.pop("proprio", 7)))


def table(keys: dict[str, list[int]]) -> dict[str, Tensor]:
    """Tensors of these shapes without numbers."""
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


def test_exact_counts(golden_root: Path) -> None:
    facts = read_json(golden_root, "param_counts")
    model = full_size()
    groups = {name: [p for _, p in members] for name, members in model.parameter_groups().items()}
    count = {name: sum(p.numel() for p in members) for name, members in groups.items()}
    assert count["action"] == facts["action_expert_parameters"] == 314_636_295
    assert count["vlm"] == facts["trainable_vlm_parameters"] == 2_291_302_128
    assert sum(count.values()) == facts["total_tied_unique"]
    last = facts["parts"]["vlm last-layer unused"]
    assert count["fixed"] == facts["parts"]["embed_tokens"] + last
    assert all(p.requires_grad for name in ("vlm", "action") for p in groups[name])
    assert not any(p.requires_grad for p in groups["fixed"])


@pytest.mark.parametrize(
    ("fact", "changes"),
    [
        ("action_adaLN", {"adaptive": "adaLN"}),
        ("action_adaLN-Zero", {"adaptive": "adaLN-Zero"}),
        ("fractal_action", {}),
    ],
)
def test_counts_of_variants(golden_root: Path, fact: str, changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = PiZero(Config(**changes), Dimensions(action=7, proprio=8 if fact == "fractal_action" else 7))
    counted = sum(p.numel() for _, p in model.parameter_groups()["action"])
    assert counted == read_json(golden_root, "param_counts")[fact]


@pytest.mark.parametrize("rank", [32, 64])
def test_counts_of_adapters(golden_root: Path, rank: int) -> None:
    """As a run adds them: those of every linear layer of the trained part, and nothing else of it is trained."""
    model = full_size()
    prepare_model(model, load_run_config(["recipe=pizero-finetune", "data.path=x", f"lora.vlm.rank={rank}"]))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad and name.startswith("vlm.")}
    assert all(".lora_" in name for name in trained)
    assert sum(trained.values()) == read_json(golden_root, "param_counts")[f"lora_vlm_r{rank}"]


def test_key_table_of_open_pi_zero(golden_root: Path) -> None:
    facts = read_json(golden_root, "manifest_pizero_full")
    keys = table({f"_orig_mod.{key}": shape for key, shape in facts["keys"].items()})
    assert len(keys) == facts["n_keys"] == 938
    assert detect_layout(keys, "manifest") == "open-pi-zero"
    for tied, unused in ((True, 163), (False, 0)):
        model = full_size(tie_experts=tied)
        ledger = plan_import(model, keys, source="manifest", rename=rename_for("open-pi-zero", tied))
        assert (len(ledger.unused), ledger.new) == (unused, [])
        assert all(".mixtures.proprio." in key for key in ledger.unused)
        written = {key for name in model.state_dict() for key in published_names(name, tied)}
        assert written == facts["keys"].keys()


@pytest.mark.parametrize("generation", ["published", "transformers 4.52", "transformers 5"])
def test_key_tables_of_paligemma(golden_root: Path, generation: str) -> None:
    facts = read_json(golden_root, "manifest_paligemma3b_hf")
    keys = {renamed(key, generation): shape for key, shape in facts["keys"].items()}
    if generation != "published":
        keys["lm_head.weight"] = facts["keys"]["language_model.model.embed_tokens.weight"]
    assert len(facts["keys"]) == 603
    assert detect_layout(keys, "manifest") == "paligemma"
    ledger = plan_import(
        full_size(),
        table(keys),
        source="manifest",
        rename=rename_for("paligemma", True),
        may_be_new=lambda name: not name.startswith("vlm."),
    )
    assert len(ledger.loaded) + len(ledger.renamed) == 602
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in ledger.unused} <= {"norm", "lm_head"}
    assert all(name.startswith(("experts.", "action_", "proprio_encoder")) for name in ledger.new)


def renamed(key: str, generation: str) -> str:
    """A published PaliGemma name as later generations of transformers save it."""
    if generation == "published":
        return key
    key = "model." + key.replace("language_model.model.", "language_model.")
    return key.replace("vision_tower.vision_model.", "vision_tower.") if generation == "transformers 5" else key


@pytest.mark.parametrize("generation", ["published", "transformers 4.52", "transformers 5"])
def test_small_paligemma_file(golden_root: Path, tmp_path: Path, generation: str) -> None:
    shared = base(golden_root)
    path = golden_root / "pizero/hf_paligemma_tiny.safetensors"
    facts, tensors = read_json(golden_root, "hf_paligemma_tiny"), load_file(path)
    expected = tensors.pop("zz_check.image_text_embeds")
    save_file({renamed(key, generation): value for key, value in tensors.items()}, tmp_path / "model.safetensors")
    model = build(facts["config"])
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    ledger = load_weights(model, str(tmp_path))
    batch = inputs(shared)
    with torch.no_grad():
        torch.testing.assert_close(model.vlm.embed(batch["image"], batch["text"]), expected, rtol=1e-5, atol=1e-5)
    assert len(ledger.unused) == len(facts["unused_source"])
    state = model.state_dict()
    moved = {name for name in state if not torch.equal(state[name], fresh[name])}
    for target, source in facts["target_to_source"].items():
        name = rename_for("open-pi-zero", True)(target)
        if source == "<unchanged>":
            assert name is None or name not in moved
        else:
            assert name is not None and torch.equal(state[name], tensors[source]), target


def tiny_checkpoint(golden_root: Path) -> tuple[Path, golden_files.Golden, golden_files.Golden]:
    path = golden_root / "pizero/tiny_checkpoint_step3.pt"
    if not path.is_file():
        pytest.skip("pizero/tiny_checkpoint_step3.pt is not under this root")
    return path, golden_files.load(golden_root, "pizero/tiny_checkpoint_expected"), base(golden_root)


def assert_as_expected(model: PiZero, golden: golden_files.Golden, shared: golden_files.Golden) -> None:
    with torch.no_grad():
        loss = model.loss(inputs(shared), shared["in.x0"], shared["in.t"]).loss
        assert loss.item() == pytest.approx(golden.facts["loss"], rel=1e-5)
        golden.close(model.sample_from(inputs(shared), shared["in.x0"]), "infer.action", rtol=1e-4, atol=1e-4)


def test_open_pi_zero_checkpoint(golden_root: Path, tmp_path: Path) -> None:
    """Half-precision weights of a compiled model load strictly, and go back into a file of the same form."""
    path, golden, shared = tiny_checkpoint(golden_root)
    with pytest.raises(UserError, match=r"does not say with which constants.*say model\.constants_confirmed=true"):
        load_weights(build(golden.facts["config"]), str(path))
    model = build(golden.facts["config"], constants_confirmed=True)
    ledger = load_weights(model, str(path))
    assert_as_expected(model, golden, shared)
    assert ledger.new == [] and all("mixtures.proprio." in key for key in ledger.unused)
    assert "does not say with which constants" in str(ledger)

    step, state = 3, model.state_dict()
    count = write_published(tmp_path / "step3.pt", state.items(), model.config, step)
    original = torch.load(path, weights_only=True)
    content = torch.load(tmp_path / "step3.pt", weights_only=True)
    assert content["cnt_update"] == original["cnt_update"] == step
    assert {k.replace("_orig_mod.", "") for k in original["model"]} == content["model"].keys() and count == len(
        original["model"]
    )
    for key, value in original["model"].items():
        assert torch.equal(value.float(), content["model"][key.replace("_orig_mod.", "")]), key

    again = build(golden.facts["config"])
    assert load_weights(again, str(tmp_path / "step3.pt")).notes == []  # its constants came along
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    other = PiZero(dataclasses.replace(model.config, time_period=10000.0), model.dimensions)
    with pytest.raises(UserError, match=r"model\.time_period=100 \(here 10000\)"):
        load_weights(other, str(tmp_path / "step3.pt"))


def test_untied_checkpoint(golden_root: Path, tmp_path: Path) -> None:
    """Experts that differ need ``tie_experts=false``; one of them is not dropped in silence."""
    path, golden, _ = tiny_checkpoint(golden_root)
    content = torch.load(path, weights_only=True)
    key = next(key for key in content["model"] if "mixtures.proprio.norm" in key)
    content["model"][key] = content["model"][key] + 1
    torch.save(content, tmp_path / "step3.pt")
    with pytest.raises(UserError, match="tie_experts=false"):
        load_weights(build(golden.facts["config"], constants_confirmed=True), str(tmp_path / "step3.pt"))
    model = build(golden.facts["config"], tie_experts=False, constants_confirmed=True)
    assert load_weights(model, str(tmp_path / "step3.pt")).unused == []
    norm = model.experts["proprio"].get_parameter("norm.weight")
    assert torch.equal(norm.detach(), content["model"][key].float())


def test_published_names_carry_their_constants(golden_root: Path, tmp_path: Path) -> None:
    path, golden, shared = tiny_checkpoint(golden_root)
    published = tmp_path / "bridge_beta_step19296_2024-12-26_22-30_42.pt"
    published.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"model\.expert_rope_theta=10000 \(here 100\), model\.time_period=10000"):
        load_weights(build(golden.facts["config"]), str(published))
    constants = {"expert_rope_theta": 10000.0, "time_period": 10000.0}
    model = build(golden.facts["config"], **constants)
    assert load_weights(model, str(published)).notes == []
    with torch.no_grad():  # and they matter
        loss = model.loss(inputs(shared), shared["in.x0"], shared["in.t"]).loss
    assert loss.item() != pytest.approx(golden.facts["loss"], rel=1e-3)


def sparse_safetensors(path: Path, keys: dict[str, list[int]]) -> None:
    """A file of these names and shapes in bfloat16 whose numbers are holes."""
    header, end = {}, 0
    for key, shape in keys.items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.nightly
def test_a_checkpoint_of_full_size_is_mapped(golden_root: Path, tmp_path: Path) -> None:
    """7.1 GB that take no disk here, into a model that has no memory yet. Both copies of the expert are compared."""
    facts = read_json(golden_root, "manifest_pizero_full")
    path = tmp_path / "full.safetensors"
    sparse_safetensors(path, facts["keys"])
    model = full_size().to(torch.bfloat16)
    ledger = load_weights(model, str(path), assign=True)
    assert path.stat().st_size > 2 * facts["total_elements_with_duplicates"] and path.stat().st_blocks * 512 < 2**20
    assert not any(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == facts["unique_params_when_tied"]
    assert len(ledger.renamed) + len(ledger.loaded) + len(ledger.unused) == 938
