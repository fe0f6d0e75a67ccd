"""The guide's vocabulary and what it becomes: every key, the authors' extra ones too, works or is refused in words."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from guide_project import PROJECT, TINY, script, train_act
from narrow_trunk import NarrowResNet
from omegaconf import OmegaConf

from policy.act.translator import (
    EncoderSettings,
    Flags,
    GuideConfig,
    guide_config,
    model_settings,
    read_guide_config,
    translate,
)
from vla_ft.config import run_config_from_dict
from vla_ft.errors import UserError

CONFIG = PROJECT / "configs" / "policy_act.yaml"


@pytest.fixture
def run_of(demos, tmp_path):
    """The run that overrides of the shipped configuration become."""

    def make(*words: str, **flags: object):
        settings = {"output_dir": str(tmp_path), "device": "cpu", "dataset_dir": str(demos), **flags}
        return translate(read_guide_config(CONFIG, words), Flags(**settings)).run

    return make


def test_the_shipped_file_has_every_key_with_its_default():
    shipped = OmegaConf.to_container(OmegaConf.load(CONFIG))
    known = dataclasses.asdict(GuideConfig())
    assert known.keys() - shipped.keys() == {"action_dim", "state_dim"}, "only a run's own config.yaml has these"
    said = {"allow_pickle": True}  # a pickle is read where the file says so, and the shipped one does
    assert {key: known[key] for key in shipped} | said == shipped
    assert not GuideConfig().allow_pickle


def test_a_configuration_of_ones_own_reads_no_pickle_unasked(tmp_path):
    np.save(tmp_path / "observations.npy", np.array([{"state": np.zeros(2)}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "actions.npy", np.zeros((1, 2)))
    np.save(tmp_path / "rollout_length.npy", np.array([1]))
    with pytest.raises(UserError, match="is pickled"):
        translate(GuideConfig(), Flags(output_dir="x", device="cpu", dataset_dir=str(tmp_path)))


def test_sizes_and_optimisation(run_of):
    run = run_of("kl_weight=5", "hidden_dim=256", "num_encoder_layers=2", "lr=5e-6", "action_loss=l2")
    model = run.model
    assert (model.chunk_size, model.observation_steps, model.hidden_dim, model.heads) == (50, 3, 256, 8)
    assert (model.encoder_layers, model.vae_encoder_layers, model.decoder_layers) == (2, 2, 7)
    assert (model.latent_dim, model.kl_weight, model.action_loss, model.dropout) == (32, 5.0, "l2", 0.1)
    assert (run.optimizer.lr, run.batch.per_device, run.data.validation_fraction) == (5e-6, 8, 0.1)
    assert model.image_size == (224, 224)


def test_epochs_become_updates(run_of):
    run = run_of("num_epochs=10", "checkpoint_frequency=3", "warmup_epochs=2", "use_cosine_schedule=true")
    assert run.steps == 40, "32 samples are four updates of eight"
    assert (run.checkpoint.every, run.validation.every, run.schedule.warmup_steps) == (12, 4, 8)
    assert run.schedule.name == "cosine"
    assert run_of("num_epochs=1", "batch_size=5").steps == 7, "the last, partial one counts"


def test_processes_share_an_epoch_and_the_rate_is_scaled_on_request_alone(run_of, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    run, scaled = run_of("num_epochs=10"), run_of("num_epochs=10", scale_lr=True)
    assert run.steps == 10 and run.optimizer.lr == 1e-5
    assert scaled.optimizer.lr == pytest.approx(4e-5)


@pytest.mark.parametrize(
    ("words", "backbone", "init"),
    [
        ((), "clip_vit_b32", ("clip-vit-b-32", "clip")),
        (("encoder.ckpt_path=/w/clip.pt",), "clip_vit_b32", ("/w/clip.pt", "clip")),
        (("encoder.pretrained=null", "encoder.freeze=false"), "clip_vit_b32", (None, "auto")),
        (("encoder.name=pri3d", "encoder.pretrained=true"), "resnet50", ("pri3d-resnet50", "pri3d")),
        (("encoder.name=pri3d", "encoder.pretrained=true", "encoder.variant=resnet18"), "resnet18",
         ("pri3d-resnet18", "pri3d")),
    ],
)  # fmt: skip
def test_encoders(run_of, words, backbone, init):
    run = run_of(*words)
    assert run.model.backbone == backbone
    assert (run.init.path, run.init.layout) == init


def test_freeze_means_it_and_a_frozen_encoder_runs_once(run_of):
    frozen, trained, uncached = run_of(), run_of("encoder.freeze=false"), run_of("encoder.cache=false")
    assert frozen.freeze == ("backbone",) and frozen.frozen_features.parts == ("backbone",)
    assert trained.freeze == () and trained.frozen_features is None
    assert uncached.freeze == ("backbone",) and uncached.frozen_features is None


@pytest.mark.parametrize("fuse", ["none", "mean", "max", "concat_mlp", "gated", "bilinear"])
def test_fusion(fuse):
    settings = model_settings(read_guide_config(CONFIG, [f"encoder.fuse={fuse}"]))
    assert settings["camera_fusion"] == fuse


def test_ensembling_is_uniform_over_the_window_and_off_by_default(run_of):
    assert not run_of().execution.temporal_ensemble
    execution = run_of("temporal_ensemble=true", "ensemble_window=6").execution
    assert (execution.temporal_ensemble, execution.ensemble_window, execution.ensemble_weights) == (True, 6, "uniform")


def test_wandb(run_of):
    assert run_of().logging.wandb == "off"
    log = run_of(wandb="offline", wandb_project="p", wandb_name="n", wandb_tags=("a", "b")).logging
    assert (log.wandb, log.project, log.name, log.tags, log.artifacts) == ("offline", "p", "n", ("a", "b"), True)
    assert not run_of("log_checkpoints=false", wandb="offline").logging.artifacts


def test_other_settings_of_a_run_by_their_own_name(run_of):
    run = run_of("vla_ft.ema.decay=0.9", "vla_ft.precision=bf16", "vla_ft.optimizer.clip_grad_norm=10")
    assert (run.ema.decay, run.precision, run.optimizer.clip_grad_norm, run.optimizer.lr) == (0.9, "bf16", 10.0, 1e-5)
    with pytest.raises(UserError, match="Did you mean 'precision'"):
        run_of("vla_ft.precison=bf16")


def test_a_model_setting_by_its_own_name_is_also_that_of_the_network_that_is_built():
    from policy.act import build_act_policy

    with torch.device("meta"):
        policy = build_act_policy(read_guide_config(CONFIG, ["vla_ft.model.pre_norm=true", "num_decoder_layers=1"]))
    assert policy.model.config.pre_norm and policy.model.config.decoder_layers == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["chunksize=4"], "Unknown key 'chunksize'. Did you mean 'chunk_size'"),
        (["encoder.fuze=mean"], "Did you mean 'encoder.fuse'"),
        (["encoder.name=mae_bimanual"], "'encoder.name' is 'mae_bimanual'"),
        (["encoder.model_name=ViT-L-14"], "the CLIP that is built in is ViT-B-32"),
        (["encoder.pretrained=laion2b"], "clip_vit takes 'openai'"),
        (["encoder.name=pri3d"], "pri3d takes true"),
        (["encoder.name=pri3d", "encoder.pretrained=true", "encoder.variant=resnet34"], "not for resnet34"),
        (["encoder.pretrained=null"], "would freeze random numbers"),
        (["encoder.out_dim=256"], "hidden_dim"),
        (["preprocess_kind=imagenet"], "trained with 'clip' statistics"),
        (["use_proprio=false"], "always sees the joints"),
        (["name=diffusion"], "'name' is 'diffusion'"),
        (["batch_size=0"], "'batch_size' is 0"),
        (["action_loss=huber"], "'action_loss' is 'huber'"),
    ],
)
def test_what_cannot_work_is_refused_in_words(words, sentence):
    with pytest.raises(UserError) as refusal:
        read_guide_config(CONFIG, words)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        ["encoder.out_dim=512"], ["preprocess_kind=clip"], ["dim_feedforward=1600"], ["dropout=0"], ["name=act"],
        ["encoder.model_name=ViT-B/32"], ["image_size=[96,128]", "encoder.name=pri3d", "encoder.pretrained=true"],
        ["camera_names=[image_left,image_right]"], ["use_proprio=true"],
    ],
)  # fmt: skip
def test_the_authors_further_keys_are_taken_where_they_mean_what_is_done(run_of, words):
    run_of(*words)


def test_camera_names_go_with_and_without_their_prefix(run_of):
    assert run_of("camera_names=[image_right,image_left]").data.cameras == ("right", "left")
    assert run_of("camera_names=[right,left]").data.cameras == ("right", "left")
    assert run_of().data.cameras is None


def test_a_configuration_round_trips_through_yaml():
    from policy.act.translator import resolved

    config = GuideConfig(encoder=EncoderSettings(name="pri3d", pretrained=True), lr=3e-6, camera_names=("image_left",))
    assert guide_config(OmegaConf.create(resolved(config))) == config


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--lr=1e-4", "--encoder.freeze", "false", "kl_weight=5"], ["lr=1e-4", "encoder.freeze=false", "kl_weight=5"]),
        ([], []),
    ],
)
def test_overrides_are_read_with_and_without_dashes(words, read):
    assert script().overrides(words) == read


@pytest.mark.parametrize("tags", [["a,b,c"], ["a", "b", "c"], ["a,", "b", "c"]])
def test_tags_come_with_commas_or_blanks(tags):
    words = ["--wandb_project", "p", "--wandb_tags", *tags]
    flags = script().read_flags(script()._parser().parse_args(words))
    assert flags.wandb_tags == ("a", "b", "c")


@pytest.mark.parametrize("words", [["a", "lr=1e-4"], ["a,lr=1e-4"]])
def test_an_override_behind_tags_is_not_taken_for_a_tag(words):
    options = script()._parser().parse_args(["--wandb_project", "p", "--wandb_tags", *words])
    with pytest.raises(UserError, match=r"'lr=1e-4' too\. Write --lr=1e-4"):
        script().read_flags(options)


def test_a_frozen_pretrained_encoder_stays_as_it_was_and_is_run_once(tmp_path, demos, capfd):
    torch.manual_seed(3)
    trunk = NarrowResNet("resnet18").state_dict()
    torch.save({"model": {f"backbone.encoder.{name}": value for name, value in trunk.items()}}, tmp_path / "pri3d.pth")
    words = ["--dataset_dir", demos, "--output_dir", tmp_path / "run", "--device", "cpu"]
    frozen = [*TINY, "--encoder.pretrained=true", f"--encoder.ckpt_path={tmp_path / 'pri3d.pth'}",
              "--encoder.freeze=true", "--num_epochs=1", "--lr=1e-3"]  # fmt: skip
    assert train_act(words, frozen) == 0
    said = capfd.readouterr().out
    assert 0 < said.find("features of backbone") < said.find("Total parameters"), "it can take minutes: not in silence"
    assert "samples/s" not in said and "vla-ft train" not in said, "the trainer's own table and lines are not shown"
    trained = torch.load(tmp_path / "run" / "checkpoint" / "act-train-1.pth")
    for name, value in trunk.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(trained[f"model.vision.trunk.{name}"], value), name
    assert (tmp_path / "run" / "features" / "backbone").is_dir()


def test_a_wrong_encoder_file_is_never_a_silent_random_start(tmp_path, demos, capfd):
    torch.save({"model": {"backbone.encoder.conv1.weight": torch.zeros(1)}}, tmp_path / "pri3d.pth")
    words = ["--dataset_dir", demos, "--output_dir", tmp_path / "run", "--device", "cpu"]
    assert train_act(words, [*TINY, f"--encoder.ckpt_path={tmp_path / 'pri3d.pth'}"]) == 2
    assert "pri3d.pth" in capfd.readouterr().err


def test_statistics_files_are_compared_not_ignored(tmp_path, demos, finished, capfd):
    from vla_ft.data.statistics import DatasetStatistics

    action = DatasetStatistics.load(finished / "statistics.json")["action"]
    np.save(tmp_path / "mean.npy", action.mean)
    np.save(tmp_path / "std.npy", action.unbiased_std)
    np.save(tmp_path / "other.npy", action.mean + 1)
    words = ["--dataset_dir", demos, "--output_dir", tmp_path / "run", "--device", "cpu"]
    same = ["--action_mean", tmp_path / "mean.npy", "--action_std", tmp_path / "std.npy"]
    assert train_act([*words, *same], [*TINY, "--num_epochs=1"]) == 0
    assert train_act([*words, "--action_mean", tmp_path / "other.npy"]) == 2
    assert "the training episodes have" in capfd.readouterr().err
    assert train_act([*words, "--action_std", tmp_path / "none.npy"]) == 2
    assert "none.npy cannot be read" in capfd.readouterr().err


def test_the_documented_plan_is_that_of_the_shipped_configuration():
    from vla_ft.planning.command import read_request

    text = (PROJECT.parents[1] / "docs" / "act.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("    vla-ft plan recipe=act "))
    planned = read_request(line.split()[2:]).config
    shipped = run_config_from_dict(
        {"recipe": "act", "policy": "act", "steps": 1, "output": "unused", "data": {"path": "mock"},
         "model": model_settings(read_guide_config(CONFIG))}
    )  # fmt: skip
    assert planned.model == shipped.model
    assert planned.freeze == ("backbone",) and planned.batch.per_device == read_guide_config(CONFIG).batch_size


def test_statistics_are_compared_with_the_episodes_that_are_trained_on_and_nothing_is_written(tmp_path, demos):
    from train.statistics_check import refuse_other_statistics
    from vla_ft.data.formats.registry import open_dataset
    from vla_ft.data.statistics import compute_statistics

    broken, output = tmp_path / "broken", tmp_path / "run"
    shutil.copytree(demos, broken)
    arrays = dict(np.load(broken / "episode_000000.npz"))
    arrays["action"][3, 0] = np.nan
    np.savez(broken / "episode_000000.npz", **arrays)
    config = read_guide_config(CONFIG, ["vla_ft.data.on_damage=skip", "val_split=0"])
    translation = translate(config, Flags(output_dir=str(output), device="cpu", dataset_dir=str(broken)))
    assert translation.steps_per_epoch == 4, "32 steps of the three sound episodes"
    np.save(tmp_path / "mean.npy", compute_statistics(open_dataset(broken), [1, 2, 3])["action"].mean)
    refuse_other_statistics(translation.run, str(tmp_path / "mean.npy"), None)
    assert not output.exists()
