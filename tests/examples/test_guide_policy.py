"""``build_act_policy`` and ``create_temporal_dataloader`` as the guide's snippets use them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from guide_project import PROJECT, TINY, in_project, train_act
from omegaconf import OmegaConf

from vla_ft.checkpoints import find_checkpoint
from vla_ft.config import ExecutionConfig
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.windows import build_sample
from vla_ft.deployment.acting import Actor
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError


def load(finished, epoch=4):
    """The guide's "Load Trained Policy", on the CPU."""
    from policy.act import build_act_policy

    config = OmegaConf.load(finished / "config.yaml")
    with in_project():
        policy = build_act_policy(config)
    policy.load_state_dict(torch.load(finished / "checkpoint" / f"act-train-{epoch}.pth", weights_only=True))
    return policy.eval(), config


def loader(demos, config, **options):
    from policy.act import create_temporal_dataloader

    settings = {"temporal_context": config.temporal_context, "chunk_size": config.chunk_size, "batch_size": 4}
    return create_temporal_dataloader(dataset_path=str(demos), **{**settings, **options})


def test_predictions_are_in_robot_units_and_equal_the_checkpoints_own(finished, demos):
    policy, config = load(finished)
    with in_project():
        predictor = Predictor.load(find_checkpoint(finished))
    reader = open_dataset(demos, cameras=["left", "right"])
    obs, actions = next(iter(loader(demos, config)))
    with torch.no_grad():
        pred, _ = policy(obs, actions)
    samples = [build_sample(reader, 0, step, predictor.processor.window, predictor.processor.keys) for step in range(4)]
    np.testing.assert_allclose(pred.numpy(), predictor.predict_samples(samples), atol=1e-5)
    np.testing.assert_array_equal(actions.numpy(), np.stack([sample["action"] for sample in samples]))


def test_the_loader_gives_every_step_once_with_history_and_padding(finished, demos):
    _, config = load(finished)
    reader = open_dataset(demos)
    batches = list(loader(demos, config, temporal_context=3))
    assert sum(len(actions) for _, actions in batches) == reader.lengths.sum()
    obs, actions = batches[0]
    assert set(obs) == {"image_left", "image_right", "state", "is_pad", "is_observed"}
    assert obs["image_left"].shape == (4, 3, 32, 32, 3) and obs["image_left"].dtype == torch.uint8
    assert obs["state"].shape == (4, 3, 14) and actions.shape == (4, 4, 14)
    assert obs["is_observed"].tolist() == [[False, False, True], [False, True, True], [True] * 3, [True] * 3]
    assert torch.equal(obs["state"][0, 0], obs["state"][0, 2]), "the first frame repeats before the episode"
    last = int(reader.lengths[0]) - 1
    padded = {n: (obs["is_pad"], actions) for n, (obs, actions) in enumerate(batches)}[last // 4]
    assert padded[0][last % 4].tolist() == [False, True, True, True]
    assert torch.equal(padded[1][last % 4][0], padded[1][last % 4][3]), "the last action repeats past the end"


def test_shuffling_draws_another_order_of_the_same_windows_at_every_pass(finished, demos):
    _, config = load(finished)
    shuffled = loader(demos, config, shuffle=True)
    passes = [torch.cat([actions for _, actions in shuffled]) for _ in range(2)]
    straight = torch.cat([actions for _, actions in loader(demos, config)])
    assert not torch.equal(passes[0], passes[1]) and not torch.equal(passes[0], straight)
    key = [sorted(map(tuple, one.flatten(1).tolist())) for one in (*passes, straight)]
    assert key[0] == key[1] == key[2]


def test_evaluation_never_sees_the_targets(finished, demos):
    policy, config = load(finished)
    obs, actions = next(iter(loader(demos, config)))
    with torch.no_grad():
        pred, losses = policy(obs, actions)
        other, worse = policy(obs, actions + 5)
        alone, nothing = policy(obs)
    assert torch.equal(pred, other) and torch.equal(pred, alone) and nothing == {}
    assert losses["kl_loss"] == 0 and losses["total_loss"] == losses["action_loss"]
    assert worse["action_loss"] > losses["action_loss"]


def test_losses_leave_padded_steps_out(finished, demos):
    policy, config = load(finished)
    obs, actions = list(loader(demos, config))[-1]
    assert obs["is_pad"].any()
    with torch.no_grad():
        _, losses = policy(obs, actions)
        _, same = policy(obs, torch.where(obs["is_pad"][..., None], actions + 100, actions))
    assert torch.equal(losses["action_loss"], same["action_loss"])


def test_training_mode_uses_the_posterior_and_learns(finished, demos):
    policy, config = load(finished)
    policy.train()
    _, losses = policy(*next(iter(loader(demos, config))))
    assert losses["kl_loss"] > 0
    expected = losses["action_loss"] + config.kl_weight * losses["kl_loss"]
    assert torch.allclose(losses["total_loss"], expected)
    losses["total_loss"].backward()
    assert policy.model.action_head.weight.grad.abs().sum() > 0


def test_a_state_dict_round_trip_keeps_predictions_and_statistics(finished, demos, tmp_path):
    policy, config = load(finished)
    other, _ = load(finished, epoch=1)
    torch.save(policy.state_dict(), tmp_path / "copy.pth")
    other.load_state_dict(torch.load(tmp_path / "copy.pth", weights_only=True))
    obs, actions = next(iter(loader(demos, config)))
    with torch.no_grad():
        assert torch.equal(policy(obs, actions)[0], other(obs, actions)[0])
    assert {name for name in policy.state_dict() if name.startswith("statistics.")} == {
        f"statistics.{name}_{what}" for name in ("action", "state") for what in ("mean", "std")
    }


def test_the_robot_moves(finished, demos):
    reader = open_dataset(demos)
    with in_project():
        predictor = Predictor.load(finished)
    uniform = ExecutionConfig(temporal_ensemble=True, ensemble_window=10, ensemble_weights="uniform")
    driven = {}
    for name, actor in {"open loop": Actor(predictor), "ensemble": Actor(predictor, uniform)}.items():
        actor.reset()
        frames = (reader.read(0, np.array([step]), predictor.processor.keys) for step in range(6))
        driven[name] = [actor.step({key: value[0] for key, value in frame.items()}) for frame in frames]
    assert np.array_equal(driven["open loop"][0], driven["ensemble"][0]), "there is one chunk at the first step"
    assert not np.array_equal(driven["open loop"][3], driven["ensemble"][3])
    assert all(np.isfinite(action).all() and action.shape == (14,) for some in driven.values() for action in some)


def test_a_fresh_policy_refuses_to_predict(finished, demos):
    from policy.act import build_act_policy

    config = OmegaConf.load(finished / "config.yaml")
    with in_project():
        policy = build_act_policy(config).eval()
    with pytest.raises(UserError, match="random weights and no statistics"):
        policy(*next(iter(loader(demos, config))))


@pytest.mark.parametrize(
    ("key", "change", "sentence"),
    [
        ("image_left", lambda value: value.float() / 255, "'image_left' is float32"),
        ("image_right", lambda value: value[:, 0], r"expected uint8 \(B, 3, H, W, 3\)"),
        ("state", lambda value: value[..., :7], "'state' is float32"),
        ("state", None, "no 'state' among"),
    ],
)
def test_an_observation_that_does_not_fit_is_told(finished, demos, key, change, sentence):
    policy, config = load(finished)
    obs, actions = next(iter(loader(demos, config)))
    obs = {name: value for name, value in obs.items() if name != key} | ({key: change(obs[key])} if change else {})
    with pytest.raises(UserError, match=f"Invalid observation format: .*{sentence}"):
        policy(obs, actions)


def test_a_missing_dataset_is_told_in_the_guides_words():
    from policy.act import create_temporal_dataloader

    with pytest.raises(UserError, match=r"Dataset not found: no dataset at your_dataset"):
        create_temporal_dataloader("your_dataset")


def test_a_fetched_dataset_goes_by_its_hub_name(demos, monkeypatch):
    from policy.act.translator import Flags, guide_config, translate
    from vla_ft.weights import datasets

    monkeypatch.setattr(datasets, "resolve_entry", lambda entry: demos if entry.name == "lab/cubes@v3.0" else None)
    name = "hub:lab/cubes@v3.0"
    config = guide_config({"num_epochs": 1})
    run = translate(config, Flags(output_dir="unused", device="cpu", dataset_dir=name)).run
    assert (run.data.path, run.steps) == (name, 4)
    assert len(loader(name, config)) == len(loader(demos, config))


def test_weights_reach_the_disk_before_their_name_and_the_name_before_the_note(finished, tmp_path, monkeypatch):
    import os

    from policy.act.weights import export_weights

    seen, descriptors = [], {}
    opened, synced, replaced = os.open, os.fsync, os.replace

    def remember(path, *rest, **more):
        descriptors[number := opened(path, *rest, **more)] = os.path.basename(path)
        return number

    monkeypatch.setattr(os, "open", remember)
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(descriptors.get(number)), synced(number)))
    monkeypatch.setattr(
        os, "replace", lambda old, new: (seen.append(f"-> {os.path.basename(new)}"), replaced(old, new))
    )
    with in_project():
        export_weights(tmp_path, find_checkpoint(finished), 4, 16)
    assert seen == [
        "act-train-4.unfinished", "-> act-train-4.pth", "checkpoint",
        ".act-train-4.json.new", "-> act-train-4.json", "checkpoint",
    ]  # fmt: skip


def test_a_robot_without_joint_readings_needs_none(tmp_path, demos):
    """The loader leaves ``state`` out where the dataset has none, and the policy does not ask for it."""
    folder, run = tmp_path / "blind", tmp_path / "run"
    shutil.copytree(demos, folder)
    for file in folder.glob("episode_*.npz"):
        arrays = dict(np.load(file))
        np.savez(file, **{**arrays, "proprio": arrays["proprio"][:, :0]})
    about = json.loads((folder / "dataset.json").read_text())
    cut = {**about, "description": {**about["description"], "proprio_names": [], "proprio_units": []}}
    (folder / "dataset.json").write_text(json.dumps(cut))
    assert train_act(["--dataset_dir", folder, "--output_dir", run, "--device", "cpu"], [*TINY, "--num_epochs=1"]) == 0
    policy, config = load(run, epoch=1)
    assert config.state_dim == 0
    obs, actions = next(iter(loader(folder, config)))
    assert "state" not in obs
    with torch.no_grad():
        pred, losses = policy(obs, actions)
    assert pred.shape == actions.shape and losses["action_loss"].isfinite()


def test_freeze_holds_in_the_network_that_is_built():
    from policy.act import build_act_policy

    def counts(*words: str) -> tuple[int, int]:
        with torch.device("meta"):
            policy = build_act_policy(read_guide_config(PROJECT / "configs" / "policy_act.yaml", words))
        sizes = [(one.numel(), one.requires_grad) for one in policy.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)

    from policy.act.translator import read_guide_config

    assert counts() == (160_318_670, 72_469_454)
    assert counts("encoder.freeze=false") == (160_318_670, 160_318_670)
