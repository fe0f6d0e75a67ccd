"""The recording loop with a simulator made for the test: what is kept, counted, numbered and refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from rich.console import Console

from vla_ft.cli import main
from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.errors import UserError
from vla_ft.simulation import record as module
from vla_ft.simulation.demonstration import CubeContacts, draw_start
from vla_ft.simulation.expert import Targets
from vla_ft.simulation.record import RecordConfig, RecordReport, record

FPS = 10
STEPS = 80
SMALL = {"height": 16, "width": 24, "fps": FPS}


class PlannedSimulator:
    """Follows targets exactly. Cubes right of ``lost_beyond`` stay on the table; ``flaky`` runs fail when drawn."""

    cameras = ("top", "angle")

    def __init__(self, fps: int, lost_beyond: float = 1.0, flaky: tuple[int, ...] = ()) -> None:
        self.fps, self.lost_beyond, self.flaky = fps, lost_beyond, flaky
        self.resets, self.closed, self.drawn = 0, False, 0

    def reset(self, cube: np.ndarray) -> None:
        self.position, self.time, self.pose = cube, 0, np.zeros(14)
        self.resets += 1

    def solve(self, targets: Targets) -> np.ndarray:
        poses = np.concatenate([targets.left.position, targets.right.position])
        return np.concatenate([poses, np.zeros(6), [targets.left_gripper, targets.right_gripper]]).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        self.pose = np.asarray(action, np.float64)
        self.time += 1

    def qpos(self) -> np.ndarray:
        return self.pose

    def qvel(self) -> np.ndarray:
        return np.full(14, float(self.time))

    def contacts(self) -> CubeContacts:
        if self.position[0] > self.lost_beyond or self.resets in self.flaky:
            return CubeContacts(table=True)
        share = self.time / STEPS
        return CubeContacts(table=share < 0.3, right=0.3 <= share < 0.9, left=share > 0.7)

    def reward(self) -> int:
        return 4 if self.contacts().handed_over else 0

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        self.drawn += 1
        return np.full((height, width, 3), self.time + 100 * self.cameras.index(camera), np.uint8)

    def close(self) -> None:
        self.closed = True


def run(output: Path, simulator: type | None = None, *, options: dict | None = None, **config) -> tuple:
    """Record; the report, what was printed and the simulator."""
    console, made = Console(record=True, width=200, force_terminal=False), []

    def build(fps: int) -> PlannedSimulator:
        made.append((simulator or PlannedSimulator)(fps, **(options or {})))
        return made[0]

    report = record(RecordConfig(output=output, **{**SMALL, **config}), console, build)
    return report, console.export_text(), made[0]


def test_episodes_read_back_through_the_reader(tmp_path: Path) -> None:
    report, printed, simulator = run(tmp_path / "set", episodes=3, seed=4, cameras=("top", "angle"))
    assert (report.kept, report.attempts, report.failures) == (3, 3, {})
    assert printed.strip().splitlines()[-1] == "kept 3 of 3 attempts (0 failed)"
    assert simulator.closed
    reader = AlohaHdf5Reader(tmp_path / "set")
    assert reader.lengths.tolist() == [STEPS] * 3 and reader.action_offset == 0
    assert reader.description.fps == FPS and reader.description.cameras == {"top": (16, 24), "angle": (16, 24)}
    assert "red cube" in reader.instruction(0)
    steps = reader.read(1, np.arange(STEPS), ["action", "proprio", "image_top", "image_angle"])
    # The picture and the state of a step are those before its action is taken.
    assert steps["image_top"][:, 0, 0, 0].tolist() == list(range(STEPS))
    assert steps["image_angle"][0, 0, 0, 0] == 100
    assert np.array_equal(steps["proprio"][1:], steps["action"][:-1])
    assert report.size == sum(path.stat().st_size for path in (tmp_path / "set").iterdir())


def test_failures_are_counted_by_reason_and_not_drawn(tmp_path: Path) -> None:
    report, printed, simulator = run(tmp_path / "set", episodes=5, options={"lost_beyond": 0.1})
    lost = [a for a in range(report.attempts) if draw_start(0, a).cube[0] > 0.1]
    assert lost and report.kept == 5 and report.attempts == 5 + len(lost)
    assert report.failures == {"the cube was not touched": len(lost)}
    assert simulator.drawn == 5 * STEPS
    last = printed.strip().splitlines()[-1]
    assert last == f"kept 5 of {report.attempts} attempts ({len(lost)} failed: the cube was not touched {len(lost)}x)"


def test_an_episode_whose_second_run_fails_is_dropped(tmp_path: Path) -> None:
    report, printed, _ = run(tmp_path / "set", episodes=2, options={"flaky": (2,)})  # the drawn run of attempt 0
    assert report.failures == {"in the second run the cube was not touched": 1} and report.attempts == 3
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["episode_0.hdf5", "episode_1.hdf5"]
    with h5py.File(tmp_path / "set" / "episode_0.hdf5") as file:
        assert file.attrs["attempt"] == 1
        assert np.array_equal(file.attrs["cube_position"], draw_start(0, 1).cube)
    assert "attempt 0" in printed


def test_it_gives_up(tmp_path: Path) -> None:
    report, printed, _ = run(tmp_path / "set", episodes=2, attempts=4, options={"lost_beyond": -1.0})
    assert (report.kept, report.attempts) == (0, 4) and "gave up: 2 episodes were wanted" in printed
    assert not (tmp_path / "set").exists()


def test_append_goes_on_with_numbers_and_attempts(tmp_path: Path) -> None:
    run(tmp_path / "set", episodes=2)
    with pytest.raises(UserError, match=r"is not empty.*append=true"):
        run(tmp_path / "set", episodes=1)
    run(tmp_path / "set", episodes=2, append=True)
    run(tmp_path / "set", episodes=1, append=True, seed=9)
    made = []
    for number in range(5):
        with h5py.File(tmp_path / "set" / f"episode_{number}.hdf5") as file:
            made.append((int(file.attrs["seed"]), int(file.attrs["attempt"])))
    assert made == [(0, 0), (0, 1), (0, 2), (0, 3), (9, 0)]
    for other in ({"height": 32}, {"cameras": ("angle",)}, {"fps": 20}, {"compress": True}):
        with pytest.raises(UserError, match="same settings, or into another folder"):
            run(tmp_path / "set", episodes=1, append=True, **other)


def test_unknown_camera_and_broken_runs_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown camera 'topp'\. Did you mean 'top'"):
        run(tmp_path / "set", cameras=("topp",))

    class Breaking(PlannedSimulator):
        def render(self, camera: str, height: int, width: int) -> np.ndarray:
            if self.time == 7:
                raise KeyboardInterrupt
            return super().render(camera, height, width)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "set", Breaking)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = 20 * STEPS * 16 * 24 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=raw - 1))
    with pytest.raises(UserError, match=r"20 episodes need about 0\.0 GB.*compress=true"):
        run(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    run(tmp_path / "set", compress=True, episodes=2)
    assert AlohaHdf5Reader(tmp_path / "set").description.cameras == {"top": (16, 24)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Key 'output' is missing"),
        (["output"], "Cannot read 'output': expected key=value"),
        (["output=x", "episode=3"], "Unknown key 'episode'. Did you mean 'episodes'?"),
        (["output=x", "episodes=none"], "Key 'episodes' is 'none'"),
        (["output=x", "episodes=0"], "episodes=0 does not fit: expected 1 or more"),
        (["output=x", "width=641"], "width=641 does not fit: expected from 16 to 640"),
        (["output=x", "noise=nan"], "noise"),
        (["output=x", "attempts=3"], "attempts=3 does not fit: expected 20 or more"),
        (["output=x", "cameras=[]"], "expected at least one camera"),
        (["output=x", "cameras=[top"], "Cannot read"),
    ],
)
def test_bad_settings_are_told_and_exit_with_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["record", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_simulator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert main(["record", f"output={tmp_path / 'set'}"]) == 2
    assert "gym_aloha cannot be imported here. Run `invoke record`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_exit_code_says_whether_all_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fake(config: RecordConfig) -> RecordReport:
        seen.append(config)
        return RecordReport(output=config.output, kept=3, attempts=9, seconds=1.0, size=0)

    monkeypatch.setattr(module, "record", fake)
    words = [f"output={tmp_path}", "cameras=[top,angle]", "compress=true"]
    assert main(["record", *words, "episodes=3"]) == 0
    assert main(["record", *words, "episodes=4"]) == 1
    assert seen[0] == RecordConfig(output=tmp_path, episodes=3, cameras=("top", "angle"), compress=True)


@pytest.mark.parametrize("append", [False, True])
def test_what_a_killed_recording_left_is_no_episode(tmp_path: Path, append: bool) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / f".episode-{'0' * 16}.unfinished").write_bytes(b"half an episode")
    run(folder, episodes=1, append=append)
    assert [path.name for path in folder.iterdir()] == ["episode_0.hdf5"]
