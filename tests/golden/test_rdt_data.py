"""Vectors, episodes, statistics and batches equal those of the published code (thu-ml/RoboticsDiffusionTransformer)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Golden
from torch import Tensor

from vla_ft.config import DataConfig
from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import Sample
from vla_ft.data.statistics import compute_statistics
from vla_ft.data.trimming import TrimmedReader
from vla_ft.data.windows import build_sample
from vla_ft.policies.rdt.conditions import hidden, of_batch
from vla_ft.policies.rdt.config import ConditionConfig, Config, LanguageConfig, VisionConfig
from vla_ft.policies.rdt.language import EmbeddingStore
from vla_ft.policies.rdt.processing import RdtProcessor
from vla_ft.policies.rdt.rotations import matrix_from_six, to_six, to_three
from vla_ft.policies.rdt.statistics import dataset_stat
from vla_ft.policies.rdt.vector import PRESETS, SLOTS, WIDTH, VectorMap
from vla_ft.policies.rdt.vision import BACKGROUND, prepare, with_background

CAMERAS = ("cam_high", "cam_right_wrist", "cam_left_wrist")
INSTRUCTION = "Pick up the red cup and put it on the left tray."
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def read(path: Path) -> EpisodeReader:
    """The set as RDT reads it. Its recorder gave RGB frames to OpenCV's encoder, which takes them for BGR."""
    return DataConfig(path="", skip_still=0.01, shortest=128, jpeg_channels="bgr").open(str(path))


@pytest.fixture
def reader(golden_root: Path) -> EpisodeReader:
    return read(golden_root / "rdt" / "episodes" / "task_a")


@pytest.fixture
def processor(reader: EpisodeReader, tmp_path: Path, golden_root: Path) -> RdtProcessor:
    batch = golden_files.load(golden_root, "rdt/consumer_batch")
    store = EmbeddingStore(tmp_path, "golden", "1")
    store.put(INSTRUCTION, batch["in.lang_embed"])
    store.put("", batch["in.empty_lang_embed"])
    config = Config(
        control_frequency=25,
        vision=VisionConfig(image_size=28, hidden_size=20, depth=1, heads=2, feedforward_dim=8),
        language=LanguageConfig(embeddings=str(tmp_path), encoder="golden", width=16),
    )
    return RdtProcessor(config, reader.description, compute_statistics(reader, [0]))


def sample_at(reader: EpisodeReader, processor: RdtProcessor, recorded_step: int) -> Sample:
    assert isinstance(reader, TrimmedReader)
    return build_sample(reader, 0, recorded_step - int(reader.starts[0]), processor.window, processor.keys)


@pytest.mark.golden_files("rdt/state_vec_map")
def test_names_of_the_vector(golden_root: Path, golden_case: str) -> None:
    published = json.loads((golden_root / f"{golden_case}.json").read_text())
    assert published["map"] == SLOTS
    assert published["length"] == WIDTH


@pytest.mark.golden_files("rdt/unified_vector")
def test_vector_both_ways(golden: Golden) -> None:
    chosen = PRESETS["agilex"]
    state = VectorMap(chosen.action, chosen.state_divisors, "state")
    action = VectorMap(chosen.action, chosen.action_divisors, "action")
    np.testing.assert_allclose(state.to_vector(golden["in.joints"].numpy()), golden["out.state"].numpy(), **CLOSE)
    np.testing.assert_array_equal(np.stack([state.mask] * 2), golden["out.mask"].numpy())
    np.testing.assert_allclose(action.from_vector(golden["in.action"].numpy()), golden["out.joints"].numpy(), **CLOSE)


@pytest.mark.golden_files("rdt/unified_vector")
def test_rotations_both_ways(golden: Golden) -> None:
    found = {key.removeprefix("rot."): golden[key].numpy() for key in golden.tensors if key.startswith("rot.")}
    np.testing.assert_allclose(to_six(found["euler_xyz"]), found["ortho6d"], atol=1e-12)
    np.testing.assert_allclose(to_six(found["quat_xyzw"]), found["ortho6d"], atol=1e-12)
    np.testing.assert_allclose(matrix_from_six(found["ortho6d"]), found["matrix_from_ortho6d"], atol=1e-12)
    np.testing.assert_allclose(matrix_from_six(found["raw6d"]), found["raw6d_matrix"], atol=1e-12)
    np.testing.assert_allclose(to_three(found["raw6d"]), found["raw6d_euler"], atol=1e-9)


@pytest.mark.golden_files("rdt/episode_sample_*")
def test_samples(golden: Golden, reader: EpisodeReader, processor: RdtProcessor) -> None:
    meta = golden.facts["meta"]
    assert isinstance(reader, TrimmedReader)
    assert (reader.recorded_length(0), int(reader.starts[0]) + 1) == (meta["#steps"], golden.facts["first_idx"])
    sample = sample_at(reader, processor, meta["step_id"])
    assert sample["task"]["language_instruction"] == meta["instruction"]
    batch = processor.collate([sample])
    for ours, theirs in {
        "state": "state", "action": "actions", "state_mask": "state_indicator",
        "state_std": "state_std", "state_norm": "state_norm",
    }.items():  # fmt: skip
        np.testing.assert_allclose(batch[ours][0].numpy(), golden[theirs].numpy(), err_msg=ours, **CLOSE)
    whole = processor.state_map.to_vector(sample["observation"]["episode_proprio"]).mean(0)
    np.testing.assert_allclose(whole, golden["state_mean"].numpy(), **CLOSE)
    for place, camera in enumerate(CAMERAS):
        valid = batch["image_valid"][0, :, place].numpy()
        np.testing.assert_array_equal(valid, golden[f"{camera}_mask"].numpy())
        difference = batch[f"image_{camera}"][0].int() - golden[camera].int()
        assert difference.abs()[valid].max() <= 3  # frames that are masked are shown as grey


@pytest.mark.golden_files("rdt/episode_state_only")
def test_trajectory_for_statistics(golden: Golden, reader: EpisodeReader, processor: RdtProcessor) -> None:
    rows = reader.read(0, np.arange(reader.lengths[0]), ("proprio", "action"))
    np.testing.assert_allclose(processor.state_map.to_vector(rows["proprio"]), golden["state"].numpy(), **CLOSE)
    np.testing.assert_allclose(processor.action_map.to_vector(rows["action"]), golden["action"].numpy(), **CLOSE)


@pytest.mark.golden_files("rdt/dataset_stat", "rdt/dataset_stat_inputs", "rdt/episodes")
def test_statistics(golden_root: Path, golden_case: str) -> None:
    published = json.loads((golden_root / "rdt" / "dataset_stat.json").read_text())["agilex"]
    inputs = json.loads((golden_root / "rdt" / "dataset_stat_inputs.json").read_text())
    folder = golden_root / "rdt" / "episodes"
    paths = {Path(name).parent.name for name in inputs["order"]}
    readers = [TrimmedReader(AlohaHdf5Reader(folder / name, cameras=()), 0.01, 128) for name in sorted(paths)]
    lengths = [int(length) for reader in readers for length in reader.lengths]
    weights = sorted(length / sum(lengths) for length in lengths)
    np.testing.assert_allclose(weights, sorted(inputs["episode_sample_weights"]), rtol=1e-12)
    preset = PRESETS["agilex"]
    state = VectorMap(preset.action, preset.state_divisors, "state")
    found = dataset_stat("agilex", readers, state)
    assert found.keys() == published.keys()
    for key in ("state_mean", "state_std", "state_min", "state_max"):
        np.testing.assert_allclose(found[key], published[key], rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.golden_files("rdt/consumer_batch")
def test_batch(golden: Golden, reader: EpisodeReader, processor: RdtProcessor) -> None:
    samples = [sample_at(reader, processor, step) for step in golden.facts["steps"]]
    batch = processor.collate(samples)
    batch["state_mean"] = golden["in.state_mean"].float().expand(3, -1)
    everything = hidden(of_batch(batch), batch, ConditionConfig(drop=1.0, state_noise_snr=None))
    kept = of_batch(batch)

    def mixed(name: str) -> Tensor:  # the third sample has every condition dropped
        return torch.cat((getattr(kept, name)[:2], getattr(everything, name)[2:]))

    golden.close(mixed("state"), golden["batch.states"].float(), **CLOSE)
    golden.close(mixed("mask")[:, 0], golden["batch.state_elem_mask"].float(), **CLOSE)
    assert torch.equal(mixed("rate"), golden["batch.ctrl_freqs"])
    golden.close(mixed("language"), "batch.lang_embeds", **CLOSE)
    assert torch.equal(mixed("language_mask"), golden["batch.lang_attn_mask"])
    golden.close(batch["action"], golden["batch.actions"].float(), **CLOSE)
    golden.close(batch["state_norm"], golden["batch.state_norm"].float(), **CLOSE)

    size = processor.config.vision.image_size
    pictures = [prepare(batch[f"image_{camera}"].flatten(0, 1), size).unflatten(0, (3, 2)) for camera in CAMERAS]
    grey = torch.full((3, size, size), BACKGROUND / 127.5 - 1)
    shown = with_background(torch.stack(pictures, dim=2).flatten(1, 2), mixed("valid").flatten(1), grey)
    assert (shown - golden["batch.images"]).abs().max() < 0.03


def test_episodes_that_are_too_short_are_named(golden_root: Path) -> None:
    folder = golden_root / "rdt" / "episodes" / "stat_extra"
    if not folder.is_dir():
        pytest.skip("the golden episodes are not in this checkout")
    reader = TrimmedReader(AlohaHdf5Reader(folder, cameras=()), 0.01, 135)
    assert reader.left_out == {1: "episode_2.hdf5 has 130 steps, fewer than data.shortest=135"}
    assert dataclasses.asdict(reader.description)["name"] == "stat_extra"
