"""Exported ACT folders are those that LeRobot's own code loaded and ran, and our predictions are its actions.

The numbers under ``data/lerobot_export`` were made once by ``lerobot_export_case.py`` and ``run_in_lerobot.py``, with
LeRobot 0.6.1 (case ``lerobot``; type syntax that Python 3.11 lacks rewritten) and 0.3.3 (``lerobot03``). If a change of
the export changes a file's hash, run both again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from lerobot_export_case import CASES, observations, write_checkpoint
from safetensors.torch import load_file, save

from vla_ft.cli import main
from vla_ft.deployment.acting import Actor
from vla_ft.deployment.predictor import Predictor

DATA = Path(__file__).parent / "data" / "lerobot_export"


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Name, checkpoint and exported folder of a case."""
    root = tmp_path_factory.mktemp(request.param)
    checkpoint = write_checkpoint(root / "checkpoint", request.param)
    words = [f"checkpoint={checkpoint}", "--format", request.param, f"output={root / 'exported'}"]
    assert main(["export", *words]) == 0
    return request.param, checkpoint, root / "exported"


def test_the_files_are_those_that_lerobot_loaded(case):
    """Loaded strictly there: every tensor has a place, and no place is left empty."""
    name, _, folder = case
    about = json.loads((DATA / f"{name}.json").read_text())
    assert about["reference"]["version"] == {"lerobot": "0.6.1", "lerobot03": "0.3.3"}[name]
    seen = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    seen["observations.safetensors"] = hashlib.sha256(save(observations())).hexdigest()
    assert seen == about["sha256"]


def executed(folder: Path) -> torch.Tensor:
    """Actions of the episode, by the folder's own way of executing chunks."""
    predictor, seen = Predictor.load(folder), observations()
    named = {f"image_{c}": seen[f"observation.images.{c}"] for c in ("left", "right")}
    named["proprio"] = seen["observation.state"]
    actor = Actor(predictor)
    steps = range(len(named["proprio"]))
    return torch.stack([torch.from_numpy(actor.step({k: v[i].numpy() for k, v in named.items()})) for i in steps])


@pytest.mark.parametrize("which", ["our checkpoint", "the exported folder"])
def test_lerobots_actions_are_ours(case, which):
    name, checkpoint, folder = case
    expected = load_file(DATA / f"{name}.safetensors")["actions"]
    assert expected.std(0)[:2].min() > 1e-3, "actions hardly move: nothing is compared"
    ours = executed(checkpoint if which == "our checkpoint" else folder)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)
