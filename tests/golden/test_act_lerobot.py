"""LeRobot's ACT: training loss with fixed noise, chunk prediction and the sequence of executed actions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from act_models import assert_gradient_norms, lerobot_batch, lerobot_model
from golden_files import Golden

from vla_ft.deployment.temporal_aggregation import ChunkExecution, OnlineEnsembler, OpenLoop
from vla_ft.policies.act.model import Act
from vla_ft.policies.base import Batch

FILES = pytest.mark.golden_files("act/lerobot_act_*")


def training_batch(golden: Golden) -> Batch:
    targets = {"action": golden["in.action"], "action_pad_mask": ~golden["in.action_is_pad"]}
    return lerobot_batch(golden, "in.") | targets


@FILES
def test_loss_and_gradients(golden: Golden) -> None:
    model, batch = lerobot_model(golden), training_batch(golden)
    result = model.loss(batch, golden["in.eps"])
    stated = golden.facts["loss_dict"]
    golden.close(result.metrics["l1"], torch.tensor(stated["l1_loss"]))
    assert ("kl" in result.metrics) == ("kld_loss" in stated)
    if "kld_loss" in stated:
        golden.close(result.metrics["kl"], torch.tensor(stated["kld_loss"]))
    golden.close(result.loss, "train.loss")
    result.loss.backward()
    assert_gradient_norms(model, golden, "lerobot")


@FILES
def test_posterior_and_prediction(golden: Golden) -> None:
    model, batch = lerobot_model(golden), training_batch(golden)
    latent = torch.zeros_like(golden["in.eps"])
    if model.posterior is not None:
        mean, log_variance = model.posterior(batch["action"], batch["action_pad_mask"], batch.get("proprio"))
        golden.close(mean, "train.mu")
        golden.close(log_variance, "train.log_sigma_x2")
        latent = mean + (log_variance / 2).exp() * golden["in.eps"]
    golden.close(model.predict(batch, latent), "train.actions_hat")


@FILES
def test_loss_over_all_steps_as_in_older_versions(golden: Golden) -> None:
    model = lerobot_model(golden, loss_reduction="all")
    result = model.loss(training_batch(golden), golden["in.eps"])
    golden.close(result.metrics["l1"], "train.l1_legacy_mean_over_all")


@FILES
def test_chunk_prediction(golden: Golden) -> None:
    model = lerobot_model(golden).eval()
    golden.close(model.sample(lerobot_batch(golden, "in.")), "infer.chunk")


@FILES
def test_executed_actions(golden: Golden) -> None:
    """One observation a call, batch of one: a queue of actions, or the ensemble of all chunks so far."""
    model, sizes = lerobot_model(golden).eval(), golden.facts["config"]
    coefficient = sizes.get("tec")
    execution: ChunkExecution = OpenLoop(sizes["n_action_steps"])
    if coefficient is not None:
        execution = OnlineEnsembler(coefficient)
    expected = golden["select.actions"]
    for call in range(len(expected)):
        observation = lerobot_batch(golden, "select.in.", slice(call, call + 1))
        action = execution.step(lambda seen=observation: predict(model, seen))
        golden.close(torch.from_numpy(action).float(), expected[call])


@FILES
def test_camera_layouts_are_one_function(golden: Golden) -> None:
    """The original's order of image tokens is a permutation of LeRobot's (the transformer sees no other order)."""
    model = lerobot_model(golden).eval()
    if not model.dimensions.cameras:
        pytest.skip(f"{golden.name} has no cameras")
    other = Act(dataclasses.replace(model.config, camera_layout="width"), model.dimensions)
    other.load_state_dict(model.state_dict())
    golden.close(other.eval().sample(lerobot_batch(golden, "in.")), "infer.chunk")


def predict(model: Act, observation: Batch) -> np.ndarray:
    with torch.no_grad():
        return model.sample(observation)[0].numpy()
