"""Published weights for the image trunk in every layout, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from act_examples import DIMENSIONS, clip_model, description, small_config
from narrow_trunk import NarrowResNet
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_ft.errors import UserError
from vla_ft.nn.clip import ClipVision
from vla_ft.nn.resnet import ResNet
from vla_ft.policies.act import build_model, load_weights
from vla_ft.policies.act.model import Act
from vla_ft.policies.act.trunks import OPENAI_SIGN, _clip
from vla_ft.policies.ledger import plan_import
from vla_ft.weights.catalogue import find_entry
from vla_ft.weights.places import FileRecord, Record, resolve


def openai_names(trunk: ClipVision) -> dict[str, Tensor]:
    """A tower as OpenAI and open_clip name it: attention stacked, the projection transposed."""
    table = {
        "class_token": "class_embedding", "positions": "positional_embedding", "patches.weight": "conv1.weight",
        "norm_in": "ln_pre", "norm_out": "ln_post", "norm1": "ln_1", "norm2": "ln_2", "up": "mlp.c_fc",
        "down": "mlp.c_proj", "attention.out": "attn.out_proj", "layers": "transformer.resblocks",
    }  # fmt: skip
    state, ours = {}, trunk.state_dict()
    for name, value in ours.items():
        if ".attention.query." in name:
            parts = [ours[name.replace("query", part)] for part in ("query", "key", "value")]
            layer, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            state[f"visual.transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif name == "project.weight":
            state["visual.proj"] = value.T.contiguous()
        elif ".attention.key." not in name and ".attention.value." not in name:
            for old, new in table.items():
                name = name.replace(old, new)
            state[f"visual.{name}"] = value
    return {name: value.clone() for name, value in state.items()}


def hugging_face_names(trunk: ClipVision) -> dict[str, Tensor]:
    """The same as transformers names it."""
    table = {
        "class_token": "vision_model.embeddings.class_embedding", "project.": "visual_projection.",
        "positions": "vision_model.embeddings.position_embedding.weight",
        "patches.": "vision_model.embeddings.patch_embedding.", "norm_in.": "vision_model.pre_layrnorm.",
        "norm_out.": "vision_model.post_layernorm.", "layers.": "vision_model.encoder.layers.", "norm1": "layer_norm1",
        "norm2": "layer_norm2", ".up.": ".mlp.fc1.", ".down.": ".mlp.fc2.", "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.out_proj",
    }  # fmt: skip
    state = {}
    for name, value in trunk.state_dict().items():
        for old, new in table.items():
            name = name.replace(old, new)
        state[name] = value.clone()
    return state


TEXT = {
    "openai": ["token_embedding.weight", "positional_embedding", "transformer.resblocks.0.attn.in_proj_weight",
               "transformer.resblocks.0.ln_1.weight", "ln_final.bias", "text_projection", "logit_scale"],
    "hugging_face": ["text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.bias",
                     "text_projection.weight", "logit_scale", "vision_model.embeddings.position_ids"],
}  # fmt: skip
NAMES = {"openai": openai_names, "hugging_face": hugging_face_names}


@pytest.mark.parametrize("layout", ["clip", "auto"])
@pytest.mark.parametrize("names", NAMES)
def test_clip_out_of_a_full_file(tmp_path: Path, names: str, layout: str) -> None:
    """The text tower is named as unused, the rest of the policy as new, and the features are the file's."""
    source, target = clip_model(), clip_model(seed=2)
    assert source.vision is not None and target.vision is not None
    text = {name: torch.zeros(2) for name in TEXT[names]}
    torch.save(NAMES[names](source.vision.trunk) | text, tmp_path / "clip.pt")
    head = target.action_head.weight.clone()
    ledger = load_weights(target, str(tmp_path / "clip.pt"), layout)
    assert sorted(ledger.unused) == sorted(text)
    trunk = set(target.vision.trunk.state_dict())
    assert {name for _, name in ledger.moves()} == {f"vision.trunk.{name}" for name in trunk}
    assert set(ledger.new) == {name for name in target.state_dict() if not name.startswith("vision.trunk.")}
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(source.vision.trunk(images), target.vision.trunk(images))
    assert torch.equal(target.action_head.weight, head)
    assert "unused  logit_scale" in str(ledger) and "new     action_head.*" in str(ledger)


def test_half_precision_file_fills_float32_weights(tmp_path: Path) -> None:
    source, target = clip_model(), clip_model(seed=2)
    assert source.vision is not None and target.vision is not None
    save_file({k: v.half() for k, v in openai_names(source.vision.trunk).items()}, tmp_path / "clip.safetensors")
    load_weights(target, str(tmp_path / "clip.safetensors"), "clip")
    assert target.vision.trunk.positions.dtype == torch.float32
    torch.testing.assert_close(target.vision.trunk.positions, source.vision.trunk.positions, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("names", NAMES)
def test_all_names_of_the_published_size(names: str) -> None:
    """At full size, shapes alone: 151 tensors become the whole tower, 87,849,216 numbers."""
    with torch.device("meta"):
        trunk = ClipVision()
        state, rename = _clip(NAMES[names](trunk))
    ledger = plan_import(trunk, state, source="published", rename=rename)
    assert len(list(ledger.moves())) == len(trunk.state_dict()) == 200
    assert sum(state[key].numel() for key, _ in ledger.moves()) == 87_849_216


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.ln_post.bias"), "missing tensor 'vision.trunk.norm_out.bias'"),
        (lambda s: s.update({"visual.head.weight": torch.zeros(2)}), "unknown tensor 'visual.head.weight'"),
        (lambda s: s.update({"visual.proj": torch.zeros(24, 9)}), r"shape \(9, 24\), expected \(8, 24\)"),
        (
            lambda s: s.pop("visual.transformer.resblocks.1.attn.in_proj_bias"),
            "missing tensor 'vision.trunk.layers.1.attention.key.bias'",
        ),
    ],
)
def test_clip_is_loaded_strictly(tmp_path: Path, change: Any, message: str) -> None:
    target = clip_model(seed=2)
    assert target.vision is not None
    state = openai_names(target.vision.trunk)
    change(state)
    torch.save(state, tmp_path / "clip.pt")
    before = target.vision.trunk.positions.clone()
    with pytest.raises(UserError, match=message):
        load_weights(target, str(tmp_path / "clip.pt"), "clip")
    assert torch.equal(target.vision.trunk.positions, before)


def test_a_folder_of_another_activation_is_refused(tmp_path: Path) -> None:
    source = clip_model()
    assert source.vision is not None
    save_file(hugging_face_names(source.vision.trunk), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "gelu"}}))
    with pytest.raises(UserError, match=r"trained with gelu; backbone=clip_vit_b32 computes quick_gelu"):
        load_weights(clip_model(seed=2), str(tmp_path), "clip")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "quick_gelu"}}))
    load_weights(clip_model(seed=2), str(tmp_path), "clip")


def test_openais_own_archive_is_a_program(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(UserError, match=r"TorchScript archive.*torch\.jit\.load\('.*ViT-B-32\.pt'"):
        load_weights(clip_model(), str(tmp_path / "ViT-B-32.pt"), "clip")


def narrow_model() -> Act:
    """ACT with an eighth of a ResNet, under the same names."""
    return Act(small_config(), DIMENSIONS, NarrowResNet("resnet18"))


def pri3d_file(path: Path, trunk: ResNet, prefix: str = "backbone.encoder.", **extra: Any) -> dict[str, Tensor]:
    """PRI3D's checkpoint of a UNet: trunk, its classifier and counters, decoder, optimizer and scheduler."""
    model = {prefix + name: value for name, value in trunk.state_dict().items()}
    model |= {f"{prefix}bn1.num_batches_tracked": torch.tensor(7), f"{prefix}fc.weight": torch.zeros(10, 512)}
    model |= {"backbone.decoder.conv1.weight": torch.zeros(4), "head.bias": torch.zeros(2)}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    state = {"model": model, "optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 5}, "epoch": 5, **extra}
    torch.save(state, path)
    return model


@pytest.mark.parametrize("layout", ["pri3d", "auto"])
def test_pri3d_as_published(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(3)
    trunk = NarrowResNet("resnet18")
    model = pri3d_file(tmp_path / "ScanNet_Combine_ResNet18.pth", trunk)
    target = narrow_model()
    assert target.vision is not None
    ledger = load_weights(target, str(tmp_path / "ScanNet_Combine_ResNet18.pth"), layout)
    assert torch.equal(target.vision.trunk.layer4[0].conv2.weight, trunk.layer4[0].conv2.weight)
    assert set(ledger.unused) == {name for name in model if "fc." in name or "tracked" in name or "encoder" not in name}


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.encoder.", "backbone.", "encoder.", "model."])
def test_pri3d_converted(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(3)
    trunk = NarrowResNet("resnet18")
    torch.save({prefix + name: value for name, value in trunk.state_dict().items()}, tmp_path / "converted.pth")
    target = narrow_model()
    assert target.vision is not None
    load_weights(target, str(tmp_path / "converted.pth"), "pri3d")
    assert torch.equal(target.vision.trunk.conv1.weight, trunk.conv1.weight)


def test_pri3d_never_starts_at_random(tmp_path: Path) -> None:
    target = narrow_model()
    assert target.vision is not None
    before = target.vision.trunk.conv1.weight.clone()
    torch.save({"model": {"net.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"no ResNet in layout pri3d, .*backbone\.encoder\.layer1"):
        load_weights(target, str(tmp_path / "other.pth"), "pri3d")
    deeper = NarrowResNet("resnet18")
    deeper.layer1.append(deeper.layer1[0])
    pri3d_file(tmp_path / "deeper.pth", deeper)
    with pytest.raises(UserError, match=r"unknown tensor 'backbone\.encoder\.layer1\.1"):
        load_weights(target, str(tmp_path / "deeper.pth"), "pri3d")
    pri3d_file(tmp_path / "program.pth", NarrowResNet("resnet18"), logger=Path)
    with pytest.raises(UserError, match=r"holds Python objects beside tensors, which loading could execute"):
        load_weights(target, str(tmp_path / "program.pth"), "pri3d")
    assert torch.equal(target.vision.trunk.conv1.weight, before)


def test_trunk_and_backbone_must_agree(tmp_path: Path) -> None:
    torch.save(ResNet("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match=r"a ResNet, the model has backbone=clip_vit_b32"):
        load_weights(clip_model(), str(tmp_path / "resnet18.pth"))
    torch.save({OPENAI_SIGN: torch.zeros(1)}, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"CLIP's image tower, the model has backbone=resnet18"):
        load_weights(build_model(small_config(), description()), str(tmp_path / "clip.pt"))


def test_the_catalogues_clip_is_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``init.path=clip-vit-b-32`` is a folder of Hugging Face's files, as ``vla-ft fetch`` leaves it."""
    source, target = clip_model(), clip_model(seed=2)
    assert source.vision is not None and target.vision is not None
    folder = tmp_path / "clip-vit-b-32"
    folder.mkdir()
    text = {name: torch.zeros(2) for name in TEXT["hugging_face"]}
    torch.save(hugging_face_names(source.vision.trunk) | text, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "quick_gelu"}}))
    entry = find_entry("clip-vit-b-32")
    assert {"pytorch_model.bin", "config.json"} <= set(entry.files)
    files = {path.name: FileRecord(path.stat().st_size) for path in folder.iterdir()}
    Record(entry.name, entry.origin, entry.revision, "", entry.load, "pinned", files, complete=True).write(folder)
    monkeypatch.setenv("VLA_FT_WEIGHTS", str(tmp_path))
    ledger = load_weights(target, str(resolve("clip-vit-b-32")))
    assert sorted(ledger.unused) == sorted(text)
    assert torch.equal(target.vision.trunk.positions, source.vision.trunk.positions)
    with pytest.raises(UserError, match=r"vla-ft fetch pri3d-resnet50"):
        resolve("pri3d-resnet50")
