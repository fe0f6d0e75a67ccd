"""Tensor names of the three published forms, and LeRobot's settings: there and back."""

from __future__ import annotations

import pytest
import torch
from act_examples import SIZES, description

from vla_ft.errors import UserError
from vla_ft.policies.act import Config, build_model
from vla_ft.policies.act.lerobot import feature_name, keeps, lerobot_settings, our_key, our_settings
from vla_ft.policies.act.names import our_name, published_name


@pytest.mark.parametrize("layout", ["original", "lerobot"])
def test_names_come_back(layout: str) -> None:
    with torch.device("meta"):
        model = build_model(Config.original(**SIZES), description())
    names = list(model.state_dict())
    published = [published_name(name, layout) for name in names]
    lacking = {name for name, other in zip(names, published, strict=True) if other is None}
    assert lacking == (set() if layout == "original" else {"pad_head.weight", "pad_head.bias"})
    assert len({other for other in published if other}) == len(names) - len(lacking)
    assert [our_name(other, layout) for other in published if other] == [n for n in names if n not in lacking]


def test_what_lerobot_leaves_out() -> None:
    with torch.device("meta"):
        model = build_model(Config.original(**SIZES), description())
    left = {name for name in model.state_dict() if not keeps(name, model.config)}
    assert {name.split(".layers.1.")[0] for name in left if "pad_head" not in name} == {"decoder"}
    assert len(left) == 2 + 18


def test_a_name_without_counterpart() -> None:
    with pytest.raises(UserError, match=r"'vision.fusion.net.0.weight' has no counterpart in the lerobot form"):
        published_name("vision.fusion.net.0.weight", "lerobot")
    assert our_name("vision.fusion.net.0.weight", "lerobot") is None


def test_settings_come_back() -> None:
    config = Config.lerobot(**{**SIZES, "decoder_layers": 1}, activation="gelu", pre_norm=True, use_vae=False)
    assert Config(**our_settings(lerobot_settings(config))) == config
    assert Config(**our_settings({})) == Config.lerobot()


def test_a_decoder_that_reads_its_first_layer_is_one_layer() -> None:
    assert lerobot_settings(Config.original())["n_decoder_layers"] == 1
    assert lerobot_settings(Config.original(decoder_output="last"))["n_decoder_layers"] == 7


def test_features_come_back() -> None:
    names = {"proprio": "observation.state", "env_state": "observation.environment_state", "action": "action"}
    names["image_top"] = "observation.images.top"
    assert {key: feature_name(key) for key in names} == names
    assert {our_key(name): name for name in names.values()} == names
    assert our_key("observation.image") == "image_image"


def test_what_lerobot_cannot_express() -> None:
    config = Config(backbone="clip_vit_b32", camera_fusion="mean", observation_steps=2)
    with pytest.raises(UserError, match=r"express camera_fusion=mean, observation_steps=2, backbone=clip_vit_b32:"):
        lerobot_settings(config)
