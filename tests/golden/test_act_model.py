"""The original ACT: DETR-VAE from feature maps, and the whole policy from images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from act_models import assert_gradient_norms, original_model
from golden_files import Golden

from vla_ft.nn.positions import sine_map
from vla_ft.policies.act.model import Act
from vla_ft.policies.act.pixels import normalized
from vla_ft.policies.act.posterior import kl_divergence
from vla_ft.policies.base import Batch


def batch_of(golden: Golden) -> Batch:
    """The case's inputs under our names. Feature maps and images come as prepared floats, one tensor a camera."""
    key = "in.features" if "in.features" in golden else "in.image01"
    batch = {"proprio": golden["in.qpos"], "action": golden["in.actions"], "action_pad_mask": ~golden["in.is_pad"]}
    for i, camera in enumerate(golden.facts["config"]["camera_names"]):
        view = golden[key][:, i]
        batch[f"image_{camera}"] = view if key == "in.features" else normalized(view)
    return batch


def posterior_latent(model: Act, golden: Golden, batch: Batch) -> torch.Tensor:
    assert model.posterior is not None
    mean, log_variance = model.posterior(batch["action"], batch["action_pad_mask"], batch["proprio"])
    return mean + (log_variance / 2).exp() * golden["in.eps"]


@pytest.mark.golden_files("act/detrvae_*")
def test_posterior(golden: Golden) -> None:
    model, batch = original_model(golden), batch_of(golden)
    assert model.posterior is not None
    inputs = (batch["action"], batch["action_pad_mask"], batch["proprio"])
    golden.close(model.posterior.encode(*inputs).transpose(0, 1), "train.cvae_encoder_out")
    mean, log_variance = model.posterior(*inputs)
    golden.close(mean, "train.mu")
    golden.close(log_variance, "train.logvar")
    divergence = kl_divergence(mean, log_variance)
    golden.close(divergence.mean(0), "train.kl_dim")
    golden.close(divergence.mean(1).mean(0, keepdim=True), "train.kl_mean")


@pytest.mark.golden_files("act/detrvae_*")
def test_memory_and_every_decoder_layer(golden: Golden) -> None:
    model, batch = original_model(golden), batch_of(golden)
    latent = posterior_latent(model, golden, batch)
    memory, positions, _ = model.encode(batch, latent)
    golden.close(memory.transpose(0, 1), "train.memory")
    queries = model.queries.weight.unsqueeze(0)
    target = torch.zeros_like(queries).expand(len(memory), -1, -1)
    outputs = model.decoder(target, queries, memory, positions)
    golden.close(outputs, "train.hs_all_layers")
    assert model.pad_head is not None
    golden.close(model.pad_head(model.decode(memory, positions)), "train.is_pad_hat")
    golden.close(model.predict(batch, latent), "train.a_hat")


@pytest.mark.golden_files("act/detrvae_*")
def test_last_decoder_layer(golden: Golden) -> None:
    model, batch = original_model(golden), batch_of(golden)
    assert model.vision is not None
    config = dataclasses.replace(model.config, decoder_output="last")
    read_last = Act(config, model.dimensions, model.vision.trunk)
    read_last.load_state_dict(model.state_dict())
    read_last.eval()
    golden.close(read_last.predict(batch, posterior_latent(model, golden, batch)), "train.a_hat_last_layer")
    golden.close(read_last.sample(batch), "infer.a_hat_last_layer")


@pytest.mark.golden_files("act/detrvae_*")
def test_inference_takes_the_latent_as_zero(golden: Golden) -> None:
    model, batch = original_model(golden), batch_of(golden)
    memory, positions, _ = model.encode(batch, torch.zeros_like(golden["in.eps"]))
    golden.close(memory.transpose(0, 1), "infer.memory")
    assert model.pad_head is not None
    golden.close(model.pad_head(model.decode(memory, positions)), "infer.is_pad_hat")
    golden.close(model.sample(batch), "infer.a_hat")


@pytest.mark.golden_files("act/detrvae_*")
def test_losses_and_gradients(golden: Golden) -> None:
    model, batch = original_model(golden), batch_of(golden)
    result = model.loss(batch, golden["in.eps"])
    golden.close(result.metrics["l1"], "train.l1")
    golden.close(result.metrics["kl"], "train.kl")
    golden.close(result.loss, "train.loss")
    result.loss.backward()
    assert_gradient_norms(model, golden, "original")


@pytest.mark.golden_files("act/detrvae_*")
def test_one_decoder_layer_is_the_same_function(golden: Golden) -> None:
    """What the seven-layer original computes is a one-layer model: weights of the unread layers can be left out."""
    model = original_model(golden, decoder_layers=1, decoder_output="last", camera_layout="sequence")
    golden.close(model.sample(batch_of(golden)), "infer.a_hat")


@pytest.mark.golden_files("act/policy_resnet*")
def test_trunk_and_positions(golden: Golden) -> None:
    model, batch = original_model(golden), batch_of(golden)
    assert model.vision is not None
    first = golden.facts["config"]["camera_names"][0]
    features = model.vision.features([batch[f"image_{first}"]])[0]
    golden.close(features, "out.cam0_layer4", rtol=1e-4, atol=2e-4)
    position = sine_map(model.config.hidden_dim, *features.shape[2:])
    golden.close(position, "out.cam0_pos", rtol=1e-5, atol=1e-6)


@pytest.mark.golden_files("act/policy_resnet*")
def test_policy_end_to_end(golden: Golden) -> None:
    """Images to losses; action sequences longer than the chunk are cut."""
    model, batch = original_model(golden), batch_of(golden)
    result = model.loss(batch, golden["in.eps"])
    golden.close(result.metrics["l1"], "out.l1", rtol=1e-4, atol=2e-5)
    golden.close(result.metrics["kl"], "out.kl", rtol=1e-4, atol=2e-5)
    golden.close(result.loss, "out.loss", rtol=1e-4, atol=2e-5)
    golden.close(model.sample(batch), "out.infer_a_hat", rtol=1e-4, atol=2e-5)
    if golden.facts.get("grad_norms"):
        result.loss.backward()
        assert_gradient_norms(model, golden, "original")
