"""Importing weights: every layout, strictly, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from act_examples import SIZES, batch, description, small_config
from safetensors.torch import save_file
from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.policies.act import Config, build_model, load_weights
from vla_ft.policies.act.model import Act
from vla_ft.policies.act.names import published_name


def fresh(config: Config, seed: int = 1) -> Act:
    torch.manual_seed(seed)
    return build_model(config, description()).eval()


def foreign_state(model: Act, layout: str, prefix: str = "model.") -> dict[str, Tensor]:
    """A model's weights under the names of a published layout."""
    state = {}
    for name, value in model.state_dict().items():
        published = published_name(name, layout)
        assert published is not None
        state[prefix + published] = value.clone()
    return state


ORIGINAL = Config.original(**SIZES)
LEROBOT = Config.lerobot(**{**SIZES, "decoder_layers": 1})


def test_own_weights(tmp_path: Path) -> None:
    source, target = fresh(small_config()), fresh(small_config(), seed=2)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    ledger = load_weights(target, str(tmp_path / "model.safetensors"))
    assert (len(ledger.loaded), ledger.renamed, ledger.new, ledger.unused) == (len(source.state_dict()), [], [], [])
    assert torch.equal(source.sample(batch()), target.sample(batch()))


def test_original_checkpoint(tmp_path: Path) -> None:
    source = fresh(ORIGINAL)
    state = foreign_state(source, "original") | {"model.backbones.0.0.body.bn1.num_batches_tracked": torch.tensor(3)}
    torch.save(state, tmp_path / "policy_best.ckpt")
    target = fresh(ORIGINAL, seed=2)
    ledger = load_weights(target, str(tmp_path / "policy_best.ckpt"))
    assert ledger.unused == ["model.backbones.0.0.body.bn1.num_batches_tracked"]
    # Only the action head is called the same, and even that carries the prefix of the published policy.
    assert len(ledger.renamed) == len(source.state_dict())
    assert torch.equal(source.sample(batch()), target.sample(batch()))


def test_original_into_lerobots_form(tmp_path: Path) -> None:
    """The original computes what LeRobot's one decoder layer computes; unread layers and the pad head are left out."""
    source, target = fresh(ORIGINAL), fresh(LEROBOT, seed=2)
    torch.save(foreign_state(source, "original", prefix=""), tmp_path / "policy_last.ckpt")
    ledger = load_weights(target, str(tmp_path / "policy_last.ckpt"), "original")
    assert all("is_pad_head" in key or "decoder.layers.1" in key for key in ledger.unused)
    assert len(ledger.unused) == 2 + 18
    torch.testing.assert_close(target.sample(batch()), source.sample(batch()), rtol=1e-4, atol=1e-5)


def test_lerobot_weights_and_their_normalisers(tmp_path: Path) -> None:
    source = fresh(LEROBOT)
    buffer = "normalize_inputs.buffer_observation_state.mean"
    save_file(foreign_state(source, "lerobot") | {buffer: torch.zeros(4)}, tmp_path / "model.safetensors")
    target = fresh(LEROBOT, seed=2)
    ledger = load_weights(target, str(tmp_path / "model.safetensors"))
    assert ledger.unused == [buffer]
    assert torch.equal(source.sample(batch()), target.sample(batch()))


def test_torchvision_resnet_starts_the_trunk(tmp_path: Path) -> None:
    source, target = fresh(small_config()), fresh(small_config(), seed=2)
    assert source.vision is not None and target.vision is not None
    extra = {"fc.weight": torch.zeros(1000, 512), "bn1.num_batches_tracked": torch.tensor(0)}
    torch.save({**source.vision.trunk.state_dict(), **extra}, tmp_path / "resnet18.pth")
    head = target.action_head.weight.clone()
    ledger = load_weights(target, str(tmp_path / "resnet18.pth"))
    assert sorted(ledger.unused) == sorted(extra)
    assert torch.equal(target.vision.trunk.conv1.weight, source.vision.trunk.conv1.weight)
    assert torch.equal(target.action_head.weight, head)


@pytest.mark.parametrize(
    ("layout", "published", "config", "message"),
    [
        (
            "original",
            ORIGINAL,
            Config(**SIZES, pad_head=True),
            "reading the first decoder layer.*Set decoder_output=first",
        ),
        ("lerobot", Config.lerobot(**SIZES), Config(**SIZES, decoder_output="first"), "reading the last decoder layer"),
        (
            "original",
            ORIGINAL,
            Config.original(**{**SIZES, "use_vae": False}),
            "unknown tensor 'model.cls_embed.weight'",
        ),
        ("original", ORIGINAL, Config.original(**{**SIZES, "chunk_size": 7}), r"shape \(6, 32\), expected \(7, 32\)"),
        (
            "lerobot",
            LEROBOT,
            Config.lerobot(**{**SIZES, "decoder_layers": 1}, pad_head=True),
            "missing tensor 'pad_head.bias'",
        ),
    ],
)
def test_other_configurations_are_refused(
    tmp_path: Path, layout: str, published: Config, config: Config, message: str
) -> None:
    torch.save(foreign_state(fresh(published), layout), tmp_path / "weights.pt")
    target = fresh(config, seed=2)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(target, str(tmp_path / "weights.pt"))
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_names_nobody_knows_are_refused(tmp_path: Path) -> None:
    """Also those that would be fine under another layout's table."""
    state = foreign_state(fresh(ORIGINAL), "original") | {"model.project_latent.scale": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.ckpt")
    with pytest.raises(UserError, match=r"unknown tensor 'model.project_latent.scale' \(1,\)"):
        load_weights(fresh(ORIGINAL), str(tmp_path / "weights.ckpt"))


def test_wrong_model_layout_and_file(tmp_path: Path) -> None:
    model: Any = fresh(small_config())
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"holds something.*Known layouts: vla_ft, original, lerobot, torchvision"):
        load_weights(model, str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="Did you mean 'lerobot'"):
        load_weights(model, str(tmp_path / "other.safetensors"), "lerobt")
    with pytest.raises(UserError, match="the model is Linear"):
        load_weights(torch.nn.Linear(1, 1), str(tmp_path / "other.safetensors"))
