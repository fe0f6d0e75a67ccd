from __future__ import annotations

import json

import pytest

from vla_ft.config import load_run_config, recipe_names, run_config_from_dict
from vla_ft.errors import UserError


@pytest.mark.newcomer
def test_every_recipe_is_complete_but_for_the_data():
    for name in recipe_names():
        config = load_run_config([f"recipe={name}", "data.path=/data/somewhere"])
        assert config.recipe == name
        assert config.output.endswith(f"runs/{name}")


@pytest.mark.newcomer
def test_overrides_reach_their_field():
    config = load_run_config(
        ["recipe=act-mock", "steps=7", "model.chunk_size=5", "optimizer.groups.backbone.lr=1e-6", "ema.decay=0.5",
         "data.cameras=[top,left]", "data.mock.image_size=[32,48]"]
    )  # fmt: skip
    assert (config.steps, config.model.chunk_size, config.optimizer.groups["backbone"].lr) == (7, 5, 1e-6)
    assert (config.ema.decay, config.data.cameras, config.data.mock.image_size) == (0.5, ("top", "left"), (32, 48))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=acct"], "Unknown recipe 'acct'. Did you mean 'act'"),
        (["recipe=act"], "Key 'data.path' is missing: give data.path="),
        (["step=5"], "Unknown key 'step'. Did you mean 'steps'?"),
        (["optimizer.learning_rate=1"], "Unknown key 'optimizer.learning_rate'."),
        (["model.chunksize=5"], "Unknown key 'model.chunksize'. Did you mean 'model.chunk_size'?"),
        (["data.wokers=1"], "Unknown key 'data.wokers'. Did you mean 'data.workers'?"),
        (["ema.decai=0.9"], "Unknown key 'ema.decai'. Did you mean 'ema.decay'?"),
        (["policy=pizerro"], "Unknown policy 'pizerro'"),
        (
            ["precision=bf61"],
            "Key 'precision' is 'bf61': input should be 'fp32', 'bf16', 'bf16_stochastic' or 'bf16_kahan'."
            " Did you mean 'bf16'?",
        ),
        (["steps=0"], "Key 'steps' is 0: input should be greater than 0"),
        (["steps=many"], "Key 'steps' is 'many'"),
        (["steps"], "Cannot read 'steps': expected key=value"),
        (["recipe=nowhere.yaml"], "No recipe file at nowhere.yaml"),
        (["model.hidden_dim=30"], "hidden_dim is 30 with 4 heads"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, message):
    with pytest.raises(UserError) as error:
        load_run_config(words)
    assert message in str(error.value)


def test_a_recipe_file_of_ones_own(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("policy: act\nsteps: 3\ndata: {path: mock}\nmodel: {chunk_size: 4}\n")
    config = load_run_config([f"recipe={recipe}"])
    assert (config.recipe, config.model.chunk_size) == ("mine", 4)
    recipe.write_text("policy: [act\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_run_config([f"recipe={recipe}"])


def test_mixes_and_augmentation():
    config = load_run_config(
        ["recipe=act", "data.path=/data", "data.mix.a.weight=2", "data.mix.b.path=elsewhere",
         "data.augmentation.brightness=0.2", "data.image_size=[224,224]"]
    )  # fmt: skip
    assert (config.data.mix["a"].weight, config.data.mix["b"].path) == (2.0, "elsewhere")
    assert config.data.augmentation.brightness == 0.2
    assert config.data.augmented
    assert not config.data.drops_unlabeled
    assert run_config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    published = load_run_config(["recipe=act", "data.path=/data", "data.mix=bridge", "data.augmentation=cogact"])
    assert published.data.augmented
    assert published.data.drops_unlabeled
    assert not load_run_config(["recipe=act", "data.path=/data"]).data.augmented


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.augmentation=cogcat"],
            "Key 'data.augmentation' is 'cogcat': input should be 'none', 'cogact', 'pizero' or",
        ),
        (["data.augmentation=cogcat"], "Did you mean 'cogact'?"),
        (
            ["data.augmentation.brigthness=1"],
            "Unknown key 'data.augmentation.brigthness'. Did you mean 'data.augmentation.brightness'?",
        ),
        (["data.mix.a.weight=0"], "Key 'data.mix.a.weight' is 0: input should be greater than 0"),
        (["data.mix.a.wieght=1"], "Unknown key 'data.mix.a.wieght'"),
        (["data.steps_per_episode=0"], "Key 'data.steps_per_episode' is 0"),
    ],
)
def test_mistakes_in_mixes_and_augmentation(words, message):
    with pytest.raises(UserError) as error:
        load_run_config(["recipe=act", "data.path=/data", *words])
    assert message in str(error.value)


def test_what_is_stored_with_a_checkpoint_gives_the_same_configuration():
    config = load_run_config(["recipe=act-mock", "ema.decay=0.9"])
    assert run_config_from_dict(config.to_dict()) == config
