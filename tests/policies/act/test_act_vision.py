"""Pixels as the trunk wants them, camera fusion, and what freezing means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from act_examples import ACTIONS, batch, clip_model, description, small_config
from PIL import Image

from vla_ft.config import OptimizerConfig
from vla_ft.errors import UserError
from vla_ft.nn.camera_fusion import CameraFusion
from vla_ft.nn.clip import CLIP_MEAN, CLIP_STD
from vla_ft.nn.resnet import ResNet
from vla_ft.policies.act import build_model
from vla_ft.policies.act.pixels import Pixels, clip_resized
from vla_ft.policies.act.vision import FusedCameras
from vla_ft.training.optimizers import build_optimizer, freeze_parts


@pytest.mark.parametrize("size", [(480, 640), (300, 225), (225, 301), (224, 224), (100, 130)])
def test_clips_pixels_are_pils(size: tuple[int, int]) -> None:
    """Resize of the short side (bicubic) and centre crop as PIL does them, up to a level of rounding."""
    height, width = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    short = min(size)
    target = tuple(224 if side == short else int(224 * side / short) for side in (width, height))
    resized = Image.fromarray(picture).resize(target, Image.Resampling.BICUBIC)
    left, top = round((target[0] - 224) / 2), round((target[1] - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(np.float32)
    ours = clip_resized(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), 224)[0].permute(1, 2, 0).numpy()
    assert ours.shape == (224, 224, 3)
    assert np.abs(ours - expected).max() <= 1


def test_pixels_follow_the_trunk() -> None:
    white = torch.full((1, 240, 320, 3), 255, dtype=torch.uint8)
    clip = Pixels.of(small_config(backbone="clip_vit_b32"))(white)
    assert clip.shape == (1, 3, 224, 224)
    expected = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(clip[0, :, 100, 100], expected)
    assert Pixels.of(small_config())(white).shape == (1, 3, 240, 320)
    own = Pixels.of(small_config(pixel_statistics={"top": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}))
    torch.testing.assert_close(own(white, "top")[0, :, 0, 0], torch.full((3,), 2.0))
    torch.testing.assert_close(own(white, "wrist"), Pixels.of(small_config())(white))


def test_a_squeezed_picture_keeps_its_sides() -> None:
    """image_size=[224,224]: the left edge of a wide picture is still there; CLIP's own way cuts it off."""
    picture = torch.zeros(1, 224, 448, 3, dtype=torch.uint8)
    picture[:, :, :8] = 255
    cut = Pixels.of(small_config(backbone="clip_vit_b32"))(picture)
    whole = Pixels.of(small_config(backbone="clip_vit_b32", image_size=(224, 224)))(picture)
    assert cut.shape == whole.shape
    assert cut.amax() < 0 < whole[0, 0, :, 0].amin()


def test_clip_tokens() -> None:
    model = clip_model()
    tokens, places, _ = model.observe(batch())
    assert tokens is not None and places is not None
    assert tokens.shape == (2, 2 * 49, model.config.hidden_dim) and places.shape == (1, 98, 32)
    assert model.sample(batch()).shape == (2, 6, ACTIONS)
    assert len(model.blocks()) == 2 + 1 + 1 + 2
    with pytest.raises(UserError, match=r"image_size is \[100, 100\]; backbone 'clip_vit_b32' takes"):
        small_config(backbone="clip_vit_b32", image_size=(100, 100))


FUSIONS = ("mean", "max", "concat_mlp", "gated", "bilinear")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_is_trained_while_the_trunk_is_frozen(fusion: str) -> None:
    """What the guide's authors' code failed: its no-grad block held the fusion heads too."""
    model = clip_model(camera_fusion=fusion).train()
    assert isinstance(model.vision, FusedCameras)
    freeze_parts(model, ("backbone",))
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-2))
    trunk = {name: value.clone() for name, value in model.vision.trunk.state_dict().items()}
    trained = [p for name, p in model.named_parameters() if name.startswith(("vision.fusion.", "vision.project."))]
    before = [p.detach().clone() for p in trained]
    model(batch()).loss.backward()
    assert all(p.grad is None for p in model.vision.trunk.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    optimizer.step()
    assert all(not torch.equal(old, p) for old, p in zip(before, trained, strict=True))
    assert all(torch.equal(trunk[name], value) for name, value in model.vision.trunk.state_dict().items())
    stepped = {id(p) for p in optimizer.state}
    assert not stepped & {id(p) for p in model.vision.trunk.parameters()} and {id(p) for p in trained} <= stepped


@pytest.mark.parametrize("fusion", ["none", "gated"])
def test_an_unfrozen_trunk_is_trained(fusion: str) -> None:
    model = clip_model(camera_fusion=fusion).train()
    model(batch()).loss.backward()
    assert model.vision is not None
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert model.vision.trunk.get_submodule("layers.0.up").weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("backbone", "fusion", "parameters"),
    [("resnet50", "concat_mlp", 25_344_064), ("resnet50", "gated", 25_081_921), ("resnet50", "mean", 24_556_608)],
)
def test_sizes_of_the_guides_encoders(backbone: str, fusion: Any, parameters: int) -> None:
    """PRI3D's trunk, the projection to 512, and the head; batch norm's affine part, ours constant, is counted there."""
    with torch.device("meta"):
        trunk = ResNet(backbone)  # type: ignore[arg-type]
        encoder = FusedCameras(trunk, trunk.out_channels, 512, fusion, Pixels())
    affine = sum(value.numel() for name, value in trunk.named_buffers() if name.endswith(("weight", "bias")))
    assert sum(p.numel() for p in encoder.parameters()) - encoder.place.numel() + affine == parameters


def test_fusion_sees_both_cameras_and_needs_two() -> None:
    model = clip_model(camera_fusion="gated")
    data = batch()
    for camera in ("image_top", "image_wrist"):
        changed = {**data, camera: 255 - data[camera]}
        assert not torch.equal(model.sample(data), model.sample(changed))
    with pytest.raises(UserError, match=r"camera_fusion=mean fuses exactly two cameras.*has 1: top"):
        build_model(small_config(camera_fusion="mean"), description(cameras={"top": (32, 64)}))
    with pytest.raises(UserError, match=r"wrist would be normalised otherwise"):
        build_model(small_config(pixel_statistics={"top": ((0, 0, 0), (1, 1, 1))}), description())


def test_a_resnet_is_pooled_by_its_mean() -> None:
    trunk, images = ResNet("resnet18"), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(trunk(images, pooled=True), trunk(images).mean((2, 3)))
    assert CameraFusion("max", 3)(torch.zeros(1, 3), torch.ones(1, 3)).tolist() == [[1.0, 1.0, 1.0]]
