"""Record in the real simulator, fine-tune RDT on it at mock size, drive the simulator with it."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from vla_ft.cli import main
from vla_ft.errors import UserError
from vla_ft.simulation.rendering import select_backend

if importlib.util.find_spec("gym_aloha") is None:
    pytest.skip("gym_aloha is not installed (the sim add-on)", allow_module_level=True)
if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed: the sim add-on goes beside the cpu environment", allow_module_level=True)
try:
    select_backend()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

from vla_ft.simulation.bimanual import SimulatedArms

SCRIPT = Path(__file__).parents[2] / "examples" / "rdt" / "drive_simulation.py"


@pytest.mark.nightly
def test_record_fine_tune_execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run, output = tmp_path / "cube", tmp_path / "run", tmp_path / "driven.json"
    shown = "cameras=[top,left_wrist,right_wrist]"
    assert main(["record", f"output={data}", "episodes=1", "fps=25", "height=24", "width=32", shown]) == 0
    words = [
        "recipe=rdt-mock", f"data.path={data}", "data.validation_fraction=0", "data.workers=0", "steps=2",
        "model.cameras.external=top", "model.cameras.right_wrist=right_wrist", "model.cameras.left_wrist=left_wrist",
        "model.language.max_tokens=32", f"output={run}",
    ]  # fmt: skip
    assert main(["train", *words]) == 0

    sent: list[np.ndarray] = []
    command = SimulatedArms.command
    monkeypatch.setattr(SimulatedArms, "command", lambda arms, action: (sent.append(action), command(arms, action))[1])
    drive = runpy.run_path(str(SCRIPT))["main"]
    told = ["instruction=transfer the cube", "ticks=10", "execute=4", "device=cpu", f"output={output}"]
    assert drive([f"run={run}", *told]) == 0
    commands = np.stack(sent)
    assert commands.shape == (10, 14) and np.isfinite(commands).all()
    assert len(np.unique(commands, axis=0)) == 10
    numbers = json.loads(output.read_text())
    assert numbers["commands"] == 10 and numbers["hz"] == 25 and 0 <= numbers["best_reward"] <= 4
    joints = np.array(numbers["joints_at_the_end"])
    assert joints.shape == (14,) and np.isfinite(joints).all()
