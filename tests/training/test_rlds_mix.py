"""A published mix from RLDS folders to a run: standardised, resized, augmented, unlabelled episodes dropped."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_runs import TINY, metrics

from vla_ft.config import load_run_config
from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError
from vla_ft.training.trainer import train

pytest.importorskip("google_crc32c")
writing = pytest.importorskip("vla_ft.data.formats.rlds_writer")
NAMES = tuple("abcdefg")


def write(folder, cameras, size, instructions, seed):
    """Episodes of 10 steps with a state of 7 numbers that walks about, and a gripper that closes half way."""
    description = DatasetDescription(
        name=folder.name,
        cameras=dict.fromkeys(cameras, size),
        action_names=NAMES,
        action_units=("",) * 7,
        proprio_names=NAMES,
        proprio_units=("",) * 7,
        action_kind="end_effector",
        action_mode="delta",
        gripper="",
        fps=5.0,
    )
    rng = np.random.default_rng(seed)
    writer = writing.RldsWriter(folder, description)
    states = []
    for instruction in instructions:
        state = np.cumsum(rng.normal(size=(10, 7)), axis=0).astype(np.float32)
        gripper = (np.arange(10) < 5).astype(np.float32)
        steps = []
        for step in range(10):
            images = {f"image_{c}": rng.integers(0, 256, (*size, 3), dtype=np.uint8) for c in cameras}
            action = np.append(np.zeros(6), gripper[step]).astype(np.float32)
            steps.append({"action": action, "proprio": state[step], **images})
        writer.add(steps, instruction)
        states.append(state)
    writer.finish()
    return states


@pytest.fixture
def root(tmp_path):
    """Bridge as its website has it, and a set of one's own in CogACT's form."""
    states = write(tmp_path / "bridge_dataset", ("0", "1"), (24, 32), ["lift", "", "fold", "push"], 0)
    write(tmp_path / "custom_finetuning", ("primary",), (40, 40), ["wipe"] * 4, 1)
    return tmp_path, states


def configured(root, output, *words):
    return load_run_config(
        [*TINY, f"data.path={root}", "data.image_size=[32,32]", "data.cameras=[primary]",
         "data.augmentation=pizero", "steps=2", f"output={output}", *words]
    )  # fmt: skip


def test_act_trains_on_a_published_mix(root, tmp_path):
    folder, states = root
    config = configured(folder, tmp_path / "run", "data.mix=bridge")
    reader = config.data.open(str(folder))
    # Movement is what the arm did, the last step has none.
    assert reader.lengths.tolist() == [9] * 4
    part, number = reader.resolve(2)
    got = part.read(number, np.arange(9), ("action", "proprio", "image_primary"))
    np.testing.assert_allclose(got["action"][:, :6], np.diff(states[2][:, :6], axis=0), atol=1e-6)
    assert got["action"][:, 6].tolist() == [1] * 5 + [0] * 4
    assert got["image_primary"].shape == (9, 32, 32, 3)
    assert [reader.instruction(e) for e in range(4)] == ["lift", "", "fold", "push"]
    report = train(config)
    assert report.step == 2
    assert np.isfinite(metrics(tmp_path / "run")[-1]["validation/action_mae"])


def test_sets_of_other_proprioception_share_none(root, tmp_path):
    folder, _ = root
    mix = ["data.mix.bridge_dataset.weight=1", "data.mix.custom_finetuning.weight=2"]
    config = configured(folder, tmp_path / "run", *mix)
    reader = config.data.open(str(folder))
    assert (reader.description.proprio_dim, list(reader.description.cameras)) == (0, ["primary"])
    assert len(reader.lengths) == 8
    with pytest.raises(UserError, match="proprio"):
        train(config)
