"""LeRobot's policy folders of both generations: from raw observation to executed action in robot units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import Golden

from vla_ft.deployment.acting import Actor
from vla_ft.deployment.predictor import Predictor
from vla_ft.policies.act.model import Act
from vla_ft.policies.base import Batch

NEWER = pytest.mark.golden_files("act/lerobot_act_checkpoint")
OLDER = pytest.mark.golden_files("act/lerobot_act_checkpoint_legacy")


@pytest.fixture
def folder(golden_root: Path, golden_case: str) -> Path:
    return golden_root / golden_case


@pytest.fixture
def golden(golden_root: Path, golden_case: str) -> Golden:
    """Inputs and results, which lie beside the folder."""
    import golden_files

    return golden_files.load(golden_root, f"{golden_case}_expected")


def observations(golden: Golden, prefix: str) -> list[dict[str, np.ndarray]]:
    """One raw observation a call, by LeRobot's names."""
    keys = [key for key in golden.tensors if key.startswith(prefix + "observation.")]
    return [
        {key.removeprefix(prefix): golden[key][call].numpy() for key in keys} for call in range(len(golden[keys[0]]))
    ]


def executed(folder: Path, seen: list[dict[str, np.ndarray]]) -> torch.Tensor:
    actor = Actor(Predictor.load(folder))
    actions = [actor.step(one) for one in seen]
    actor.reset()
    np.testing.assert_array_equal(actor.step(seen[0]), actions[0])
    return torch.from_numpy(np.stack(actions))


@NEWER
def test_executed_actions_of_the_newer_generation(folder: Path, golden: Golden) -> None:
    actual = executed(folder, observations(golden, "in."))
    golden.close(actual, "out.actions", rtol=1e-4, atol=1e-5)


@NEWER
def test_normalised_observation(folder: Path, golden: Golden) -> None:
    """Joints by their statistics; the environment's state, which has no mode, as it is."""
    predictor = Predictor.load(folder)
    (seen,) = observations(golden, "in.")[:1]
    batch = collated(predictor, seen)
    golden.close(batch["proprio"], "pre.observation.state", rtol=1e-5, atol=1e-6)
    golden.close(batch["env_state"], "pre.observation.environment_state", rtol=1e-6, atol=1e-6)


@OLDER
def test_executed_actions_of_the_older_generation(folder: Path, golden: Golden) -> None:
    """Statistics out of ``model.safetensors``, which newer LeRobot drops in silence."""
    actual = executed(folder, observations(golden, "select.in."))
    golden.close(actual, "select.actions", rtol=1e-4, atol=1e-5)


@OLDER
def test_training_loss_of_the_older_generation(folder: Path, golden: Golden) -> None:
    """Raw training batches through the folder's own normalisation; 0.3.3 averages over padded steps too."""
    predictor = Predictor.load(folder)
    model, processor = predictor.model, predictor.processor
    assert isinstance(model, Act)
    model.config = type(model.config)(**{**vars(model.config), "loss_reduction": "all"})
    batches = [collated(predictor, seen) for seen in observations(golden, "in.")]
    batch = {key: torch.cat([one[key] for one in batches]) for key in ("proprio", "env_state")}
    action = processor._normalize("action", golden["in.action"].numpy(), np.zeros(3, np.int64))  # type: ignore[attr-defined]
    batch |= {"action": torch.from_numpy(action), "action_pad_mask": ~golden["in.action_is_pad"]}
    result = model.train().loss(batch, golden["in.eps"])
    golden.close(result.metrics["l1"], torch.tensor(golden.facts["loss_dict"]["l1_loss"]), rtol=1e-4, atol=1e-5)
    golden.close(result.metrics["kl"], torch.tensor(golden.facts["loss_dict"]["kld_loss"]), rtol=1e-4, atol=1e-5)
    golden.close(result.loss, "train.loss", rtol=1e-4, atol=1e-4)


def collated(predictor: Predictor, seen: dict[str, np.ndarray]) -> Batch:
    """The batch that the model gets of one raw observation."""
    return predictor.processor.collate([predictor.sample_of(seen)])
