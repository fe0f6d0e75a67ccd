"""The model as the trainer uses it: hiding of conditions, recomputation, cached features, options."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdt_examples import DESCRIPTION, MOCK, mock_batch, tiny, tiny_model

from vla_ft.config import load_run_config
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.mock import write_mock
from vla_ft.data.statistics import DatasetStatistics, compute_statistics
from vla_ft.data.windows import build_sample
from vla_ft.errors import UserError
from vla_ft.policies import rdt
from vla_ft.policies.frozen_parts import compute_rows, leave_out
from vla_ft.policies.rdt.attention import ScaleNorm
from vla_ft.policies.rdt.conditions import hidden, of_batch, rows_of
from vla_ft.policies.rdt.config import CameraSlots, ConditionConfig, VectorConfig
from vla_ft.policies.rdt.model import Rdt
from vla_ft.policies.rdt.processing import RdtProcessor
from vla_ft.policies.rdt.vector import EULER, QUATERNION, VectorMap
from vla_ft.training.blocks import recompute_activations

PLACES = [(0, 0), (0, 5), (1, 9)]


def test_batch_has_what_the_model_needs(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), PLACES)
    assert batch["state"].shape == (3, 1, 128) and batch["action"].shape == (3, 4, 128)
    assert batch["image_top"].shape == (3, 2, 16, 24, 3)
    # History is hidden at an episode's first step; the left wrist does not exist.
    assert batch["image_valid"][:, :, 0].tolist() == [[False, True], [True, True], [True, True]]
    assert not batch["image_valid"][:, :, 2].any()
    assert batch["ctrl_freq"].tolist() == [50] * 3


def test_the_banner_tells_of_stand_ins() -> None:
    (said,) = rdt.remarks(tiny(), {})
    assert "instructions are RANDOM STAND-INS" in said


def test_loss_learns_and_sampling_stays_in_the_robots_places(tmp_path: Path) -> None:
    batch, processor = mock_batch(tmp_path, tiny(), PLACES)
    model = tiny_model().train()
    loss = model(batch).loss
    loss.backward()
    assert all(p.grad is not None for part in ("adaptors", "core") for _, p in model.parameter_groups()[part])
    model.eval()
    chunk = model.sample(batch)
    assert chunk.shape == (3, 4, 128)
    assert (chunk[:, :, processor.action_map.mask == 0] == 0).all()
    assert processor.unnormalize(chunk).shape == (3, 4, 14)
    measures = model.sample_metrics(batch["action"], batch)
    assert [v.sum().item() for v in measures.values()] == [0.0] * 4


def test_a_state_and_an_action_of_other_places_are_kept_apart(tmp_path: Path) -> None:
    arms = two_arms()
    vector = VectorConfig(
        state=arms, action=tuple(name.replace("_pos", "_vel").replace("open", "open_vel") for name in arms)
    )
    batch, processor = mock_batch(tmp_path, tiny(vector=vector), PLACES)
    state, action = batch["state_mask"][0].bool(), batch["action_mask"][0].bool()
    assert not (state & action).any() and state.sum() == action.sum() == 14
    assert torch.equal(batch["action"][..., ~action], torch.zeros_like(batch["action"][..., ~action]))
    model = filled(vector=vector)
    seen: list[torch.Tensor] = []
    model.state_adaptor.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        chunk = model.sample(batch)
    assert torch.equal(seen[0][:, 0, 128:], batch["state_mask"])
    assert all(torch.equal(seen[0][:, place, 128:], batch["action_mask"]) for place in range(1, 5))
    assert chunk[..., action].abs().min() > 0 and (chunk[..., ~action] == 0).all()
    assert abs(processor.unnormalize(chunk)).min() > 0
    measures = model.sample_metrics(batch["action"] + 0.5, batch)
    assert measures["overall_avg_sample_mse"] == measures["sample_mse"][0] == 0.25
    del batch["action_mask"]  # the state's places must not stand for the action's
    with pytest.raises(KeyError, match="action_mask"):
        model.sample(batch)


def test_sampling_never_reads_targets(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), PLACES)
    model = tiny_model().eval()
    without = {key: value for key, value in batch.items() if key not in ("action", "action_pad_mask")}
    chunks = []
    for given in (batch, without):
        torch.manual_seed(0)
        chunks.append(model.sample(given))
    assert torch.equal(*chunks)


def filled(**changes: Any) -> Rdt:
    """A tiny model in which everything counts: fresh ones end in a layer of zeros."""
    model = tiny_model(**changes).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_keys_and_values_are_computed_once_a_chunk_and_change_nothing(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), PLACES * 2)
    model = filled()
    given, tokens = of_batch(batch), model.image_tokens(batch, batch["image_valid"])
    given.language_mask[:3, 2:] = False
    noise = torch.randn(6, 4, 128)
    calls: list[int] = []
    for number, block in enumerate(model.model.blocks):
        block.cross_attn.kv.register_forward_hook(lambda *_, number=number: calls.append(number))
    kept = model.sample_from(given, tokens, noise)
    assert calls == [0, 1] * 2, "once a block, for four chunks and for two"
    calls.clear()
    plain = model.sample_from(given, tokens, noise, keep=False)
    assert calls == [0, 1] * 5 * 2
    assert plain.abs().max() > 0.1
    torch.testing.assert_close(kept, plain, rtol=0, atol=1e-6)
    alone = [model.sample_from(rows_of(given, slice(i, i + 1)), tokens[i : i + 1], noise[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(kept, torch.cat(alone), rtol=0, atol=1e-5)


def test_recomputation_changes_no_gradient(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), PLACES)
    plain = tiny_model().train()
    recomputed = copy.deepcopy(plain)
    recompute_activations(recomputed)
    for model in (plain, recomputed):
        torch.manual_seed(0)
        model(batch).loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_cached_tokens_stand_for_pictures(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), PLACES)
    model = tiny_model().eval()
    declared = model.frozen_features()["vision"]
    frames = [{k: v[:, t : t + 1] for k, v in batch.items() if k in declared.inputs} for t in range(2)]
    rows = [compute_rows(model, declared, frame) for frame in frames]
    cached = {key: value for key, value in batch.items() if key not in declared.replaces}
    cached |= {key: torch.stack([row[key] for row in rows], dim=1) for key in declared.outputs}
    expected = model.image_tokens(batch, batch["image_valid"])
    leave_out(model, declared)
    torch.testing.assert_close(model.image_tokens(cached, batch["image_valid"]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("snr", [40.0, 20.0])
def test_noise_on_the_state_has_the_published_size(tmp_path: Path, snr: float) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), [(0, 5)] * 400)
    torch.manual_seed(0)
    noisy = hidden(of_batch(batch), batch, ConditionConfig(drop=0.0, state_noise_snr=snr)).state
    spread = (noisy - batch["state"])[:, 0].std(0)
    used = batch["state_mask"][0] > 0
    torch.testing.assert_close(spread[used], batch["state_std"][0, used] * 10 ** (-snr / 20), rtol=0.15, atol=0)
    assert (spread[~used] == 0).all()


def test_conditions_are_dropped_as_often_as_asked(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), [(0, 5)] * 500)
    torch.manual_seed(0)
    config = ConditionConfig(drop=0.3, drop_external=0.6, state_noise_snr=None)
    found = hidden(of_batch(batch), batch, config)
    shares = {
        "rate": (found.rate == 0).float().mean(),
        "state": (found.state[:, 0] == batch["state_mean"]).all(-1).float().mean(),
        "mask": (found.mask.sum((1, 2)) == 0).float().mean(),
        "language": (found.language_mask.sum(1) == batch["lang_empty"].shape[1]).float().mean(),
        "wrist": (~found.valid[:, :, 1]).float().mean(),
    }
    assert all(abs(share.item() - 0.3) < 0.07 for share in shares.values()), shares
    assert abs((~found.valid[:, :, 0]).float().mean().item() - 0.6) < 0.07


def test_a_norm_of_the_other_kind_gives_other_numbers(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), PLACES)
    published, other = tiny_model().eval(), tiny_model(norm="rms").eval()
    torch.manual_seed(1)
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    other.load_state_dict(published.state_dict())
    losses = []
    for model in (published, other):
        torch.manual_seed(0)
        losses.append(model(batch).loss.item())
    assert abs(losses[0] - losses[1]) > 1e-4 * losses[0]


def test_one_grey_picture_takes_every_missing_place(tmp_path: Path) -> None:
    batch, _ = mock_batch(tmp_path, tiny(), PLACES)
    model = tiny_model().eval()
    tokens = model.image_tokens(batch, batch["image_valid"]).unflatten(1, (2, 3, -1))
    assert torch.equal(tokens[0, 0, 0], tokens[1, 1, 2]) and torch.equal(tokens[0, 1, 2], tokens[2, 0, 2])
    assert not torch.equal(tokens[1, 0, 0], tokens[1, 1, 2])


def test_a_hand_takes_five_gripper_places() -> None:
    names = (*(f"right_arm_joint_{i}_pos" for i in range(7)), *(f"right_gripper_joint_{i}_pos" for i in range(5)))
    mapping = VectorMap(names, {}, "action")
    values = torch.arange(12.0).numpy() + 1
    vector = mapping.to_vector(values)
    assert vector[10:15].tolist() == [8, 9, 10, 11, 12] and mapping.mask.sum() == 12
    assert mapping.from_vector(vector).tolist() == values.tolist()


def test_angles_become_six_numbers_and_come_back() -> None:
    names = ("left_eef_pos_x", "left_eef_euler_x", "left_eef_euler_y", "left_eef_euler_z", "left_gripper_open")
    mapping = VectorMap(names, {"left_gripper_open": 2.0}, "state")
    values = torch.tensor([0.5, 0.1, -0.2, 0.3, 1.0]).numpy()
    vector = mapping.to_vector(values)
    assert mapping.mask.sum() == 8 and vector[80] == 0.5 and vector[60] == 0.5
    torch.testing.assert_close(torch.from_numpy(mapping.from_vector(vector)), torch.from_numpy(values))
    vector[:] = 9
    places = [i for i in range(128) if mapping.mask[i]]
    vector[places] = range(8)
    order = {place: float(number) for number, place in enumerate(places)}
    turned = [order[place] for place in places if place not in (60, 80)]
    assert mapping.errors_by_name(vector).tolist() == [order[80], *[sum(turned) / 6] * 3, order[60]]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("arm_joint_0_pos", "right_arm_joint_0_pos"), "fills place 0 .* twice"),
        (("arm_joint_0_poss",), "Did you mean 'arm_joint_0_pos'"),
        (("eef_euler_x", "eef_euler_y"), "needs all of its numbers"),
    ],
)
def test_impossible_mappings_are_refused(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        VectorMap(names, {}, "action")


def test_the_mean_of_a_dropped_rotation_is_that_of_its_six_numbers(tmp_path: Path) -> None:
    reader = open_dataset(write_mock(tmp_path, MOCK))
    names = (*EULER, *(f"arm_joint_{i}_pos" for i in range(10)), "gripper_open")
    config = tiny(vector=VectorConfig(action=names))
    statistics = compute_statistics(reader, np.arange(1))
    plain = RdtProcessor(config, reader.description, statistics)
    assert plain.reads_episodes and not RdtProcessor(tiny(), reader.description, statistics).reads_episodes
    made = plain.informed(reader, np.arange(1))
    sample = build_sample(reader, 0, 3, made.window, made.keys)
    before, after = (one.collate([sample])["state_mean"][0].numpy() for one in (plain, made))
    states = plain.state_map.to_vector(reader.read(0, np.arange(int(reader.lengths[0])), ("proprio",))["proprio"])
    np.testing.assert_allclose(after, states.mean(0), atol=1e-6)
    turned = np.isin(np.arange(128), np.arange(33, 39))
    np.testing.assert_allclose(before[~turned], after[~turned], atol=1e-5)
    assert np.abs(before - after)[turned].max() > 1e-3


@pytest.mark.parametrize("kind", [EULER, QUATERNION])
def test_a_rotation_has_no_divisor_and_no_zero_quaternion(kind: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=rf"action_divisors names '{kind[0]}': a rotation"):
        VectorMap(kind, {kind[0]: 2.0}, "action")
    values = np.zeros((3, len(kind)))
    if kind is EULER:
        assert VectorMap(kind, {}, "state").to_vector(values)[0, 33:39].tolist() == [1, 0, 0, 0, 1, 0]
    else:
        with pytest.raises(UserError, match="state holds a quaternion of four zeros"):
            VectorMap(kind, {}, "state").to_vector(values)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.vector=alohaa"], "Key 'model.vector' is 'alohaa': .*Did you mean 'aloha'"),
        (["model.vector={state: [gripper_open]}"], "Key 'model.vector.action' is missing: give model.vector.action="),
        (["model.vector={action:[x]}"], "a space is missing behind a colon"),
    ],
)
def test_mistakes_in_a_mapping_are_told_by_keys_that_can_be_given(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        load_run_config(["recipe=rdt-mock", *words])
    assert "VectorConfig" not in str(error.value) and "literal" not in str(error.value)


def test_what_an_error_says_to_type_can_be_typed() -> None:
    names = "[gripper_open]"
    config = load_run_config(["recipe=rdt-mock", f"model.vector.action={names}", f"model.vector.state={names}"])
    assert config.model.vector == VectorConfig(action=("gripper_open",), state=("gripper_open",))


def test_fresh_weights_start_as_published() -> None:
    torch.manual_seed(0)
    model = tiny_model(hidden_size=128, depth=1)
    core = model.model
    last = core.final_layer.ffn_final.fc2
    assert (last.weight == 0).all() and (last.bias == 0).all()
    for embedder in (core.t_embedder, core.freq_embedder):
        for layer in (embedder.mlp[0], embedder.mlp[2]):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03) and (layer.bias == 0).all()
    for layer in (
        core.blocks[0].attn.qkv,
        core.blocks[0].cross_attn.kv,
        core.blocks[0].ffn.fc1,
        model.state_adaptor[0],
    ):
        bound = (6 / sum(layer.weight.shape)) ** 0.5  # Xavier's, uniform
        assert bound * 0.98 < layer.weight.abs().max() <= bound and (layer.bias == 0).all()
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert all((norm.weight == 1).all() for norm in model.modules() if isinstance(norm, ScaleNorm))


def test_a_dataset_that_does_not_fit_is_told_in_words() -> None:
    with pytest.raises(UserError, match=r"has 14 dimensions of action .* maps 1 "):
        rdt.build_model(tiny(vector=VectorConfig(action=("gripper_open",), state=two_arms())), DESCRIPTION)
    with pytest.raises(UserError, match=r"names 'topp'.*Did you mean 'top'"):
        rdt.build_model(tiny(cameras=CameraSlots(external="topp", right_wrist=None, left_wrist=None)), DESCRIPTION)
    with pytest.raises(UserError, match="twice"):
        rdt.build_model(tiny(cameras=CameraSlots(external="top", right_wrist="top", left_wrist=None)), DESCRIPTION)


def two_arms() -> tuple[str, ...]:
    return rdt.processing.find_vector("aloha").action


def test_settings_are_suggested_by_camera_names(tmp_path: Path) -> None:
    _, processor = mock_batch(tmp_path, tiny(), PLACES)
    statistics: DatasetStatistics = processor.statistics
    settings = rdt.suggest(DESCRIPTION, statistics)
    assert settings["cameras"] == {"external": "top", "right_wrist": "wrist", "left_wrist": None}
    assert settings["vector"] == "aloha"
    statistics["action"].max[6] = 1.0
    statistics["action"].max[13] = 4.0  # the other arm's gripper alone is in Agilex' units
    assert rdt.suggest(DESCRIPTION, statistics)["vector"] == "agilex"
