"""``vla-ft record``: demonstrations of gym-aloha's bimanual transfer cube as ALOHA HDF5 episodes.

Each attempt is first run without pictures, which takes half a second; only the successful ones are run again from the
same start with the same joint actions, and drawn. An episode whose second run does not succeed too is dropped.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vla_ft.data.formats.aloha_layout import inspect_episode, list_episodes
from vla_ft.data.formats.hdf5_files import open_hdf5
from vla_ft.data.formats.writer import EpisodeWriter, is_unfinished
from vla_ft.errors import UserError, unknown
from vla_ft.simulation.demonstration import Frame, Simulator, Start, attempt_transfer, draw_start, replay
from vla_ft.simulation.expert import DURATION

TASK = "transfer_cube"
INSTRUCTION = "pick up the red cube with the right arm and hand it over to the left arm"
_RANGES: dict[str, tuple[float, float]] = {
    "episodes": (1, math.inf),
    "seed": (0, math.inf),
    "height": (16, 480),  # MuJoCo's off-screen buffer in this scene is 480 x 640
    "width": (16, 640),
    "fps": (1, 500),
    "noise": (0, 0.2),
}
_MODULES = ("mujoco", "dm_control", "gym_aloha")
_JPEG_SHARE = 0.2  # of the raw size, on the safe side: measured 0.09 at 120 x 160


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What to record. ``output`` is a folder that does not exist yet or is empty, unless ``append``."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    output: Path
    episodes: int = 20
    """Successful episodes to keep."""
    seed: int = 0
    height: int = 120
    width: int = 160
    """Pixels of a picture, at most 480 x 640; drawing on a CPU takes about the same time at any size."""
    cameras: tuple[str, ...] = ("top",)
    fps: int = 50
    """Control steps a second; gym-aloha's is 50. Another rate is a set for this project's environment alone."""
    noise: float = 0.0
    """Metres, standard deviation: how far the expert misjudges where the cube lies."""
    compress: bool = False
    """Store JPEG instead of pixels."""
    append: bool = False
    """Add to the episodes in ``output``: numbers and, for the same seed, attempts go on after the last."""
    attempts: int | None = None
    """Give up after so many attempts; twice the episodes and ten by default."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _within(name, getattr(self, name), low, high)
        if self.attempts is not None:
            _within("attempts", self.attempts, self.episodes)
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise UserError(f"cameras={list(self.cameras)}: expected at least one camera and none twice, e.g. [top].")

    @property
    def most_attempts(self) -> int:
        """When to give up."""
        return self.attempts or 2 * self.episodes + 10


@dataclass(frozen=True, kw_only=True)
class RecordReport:
    """What became of a recording. ``failures`` counts attempts by the reason why they failed."""

    output: Path
    kept: int
    attempts: int
    failures: dict[str, int] = field(default_factory=dict)
    seconds: float
    size: int
    """Bytes of the episodes that were written."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}x" for reason, count in sorted(self.failures.items()))
        failed = f"{sum(self.failures.values())} failed{': ' if reasons else ''}{reasons}"
        return f"kept {self.kept} of {self.attempts} attempts ({failed})"


def record(
    config: RecordConfig, console: Console | None = None, simulator: Callable[[int], Simulator] | None = None
) -> RecordReport:
    """Record until ``config.episodes`` are kept or the attempts are used up.

    ``simulator`` opens the environment at a control rate; gym-aloha's by default. Raises UserError for a folder,
    camera, rate or machine that does not fit, or a full disk; episodes that are complete by then stay.
    """
    console = console or Console()
    first = _prepare_folder(config)
    environment = (simulator or _open_gym_aloha(console))(config.fps)
    fresh = not config.output.exists()
    try:
        for camera in config.cameras:
            if camera not in environment.cameras:
                raise unknown("camera", camera, environment.cameras)
        return _Recording(config, environment, console).run(first)
    finally:
        environment.close()
        if fresh and config.output.is_dir() and not any(config.output.iterdir()):
            config.output.rmdir()


class _Recording:
    """The loop over attempts, and what it has to show for them."""

    def __init__(self, config: RecordConfig, simulator: Simulator, console: Console) -> None:
        self.config = config
        self.simulator = simulator
        self.console = console
        self.paths: list[Path] = []
        self.failures: Counter[str] = Counter()

    def run(self, first: int) -> RecordReport:
        """Attempts from number ``first`` on."""
        began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            frames = progress.add_task("frames", total=self.config.episodes * self._steps)
            for attempt in range(first, first + self.config.most_attempts):
                progress.update(frames, completed=len(self.paths) * self._steps)
                self._attempt(attempt, progress, frames)
                if len(self.paths) == self.config.episodes:
                    break
        report = RecordReport(
            output=self.config.output,
            kept=len(self.paths),
            attempts=attempt - first + 1,
            failures=dict(self.failures),
            seconds=time.monotonic() - began,
            size=sum(path.stat().st_size for path in self.paths),
        )
        self._tell(report)
        return report

    @property
    def _steps(self) -> int:
        return round(DURATION * self.config.fps)

    def _attempt(self, attempt: int, progress: Progress, frames: TaskID) -> None:
        start = draw_start(self.config.seed, attempt, self.config.noise)
        actions, reason = attempt_transfer(self.simulator, start)
        where = f"attempt {attempt}, cube at ({start.cube[0]:.3f}, {start.cube[1]:.3f})"
        path = None
        if reason is None:
            path, reason = self._write(attempt, start, actions, lambda: progress.advance(frames))
        if path is None:
            self.failures[str(reason)] += 1
            self.console.print(f"{where}: failed, {reason}", highlight=False)
            return
        self.paths.append(path)
        self.console.print(f"{where}: {path.name}", highlight=False)

    def _write(
        self, attempt: int, start: Start, actions: np.ndarray, advance: Callable[[], None]
    ) -> tuple[Path | None, str | None]:
        """Draw and store an episode; its path, or why there is none."""
        config = self.config
        size = (config.height, config.width)
        attributes = {
            "task": TASK,
            "language_instruction": INSTRUCTION,
            "fps": config.fps,
            "seed": config.seed,
            "attempt": attempt,
            "cube_position": start.cube,
        }
        with EpisodeWriter(
            config.output,
            cameras=dict.fromkeys(config.cameras, size),
            sim=True,
            compress=config.compress,
            attributes=attributes,
        ) as writer:

            def keep(frame: Frame) -> None:
                writer.add(qpos=frame.qpos, qvel=frame.qvel, images=frame.images, action=frame.action)
                advance()

            reason = replay(self.simulator, start, actions, config.cameras, size, keep)
            if reason is not None:
                writer.abort()
                return None, f"in the second run {reason}"
        return writer.path, None

    def _tell(self, report: RecordReport) -> None:
        if report.kept < self.config.episodes:
            self.console.print(f"gave up: {self.config.episodes} episodes were wanted", highlight=False)
        pace = report.seconds / max(1, report.kept)
        self.console.print(
            f"{report.size / 1e6:.1f} MB in {report.output}, {report.seconds:.0f} s ({pace:.1f} s an episode)",
            highlight=False,
        )
        self.console.print(str(report), highlight=False)


def _within(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:  # refuses NaN too
        span = f"from {low} to {high}" if math.isfinite(high) else f"{low} or more"
        raise UserError(f"{name}={value} does not fit: expected {span}.")


def _prepare_folder(config: RecordConfig) -> int:
    """Check the folder and the room on its disk; return the number of the first attempt."""
    output = config.output
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file. Expected a folder that does not exist yet.")
    first = 0
    # What a killed recording left is the writer's to remove, and no reason to refuse.
    if output.is_dir() and any(not is_unfinished(path) for path in output.iterdir()):
        if not config.append:
            raise UserError(
                f"output={output} is not empty. Name a new folder, or add append=true to record more episodes into it."
            )
        first = _continue_after(config, list_episodes(output))
    share = _JPEG_SHARE if config.compress else 1.0
    frame = config.height * config.width * 3 * len(config.cameras)
    needed = config.episodes * round(DURATION * config.fps) * frame * share
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{config.episodes} episodes need about {needed / 1e9:.1f} GB, but the disk of {existing} has "
            f"{free / 1e9:.1f} GB free. Record fewer episodes, smaller pictures or compress=true, or free space."
        )
    return first


def _continue_after(config: RecordConfig, paths: Sequence[Path]) -> int:
    """The first attempt not yet made with this seed. Raises UserError for pictures or a rate unlike those there."""
    size = None if config.compress else (config.height, config.width)
    wanted = (dict.fromkeys(sorted(config.cameras), size), float(config.fps))
    first = 0
    for path in paths:
        header = inspect_episode(path)
        found = (dict(sorted(header.cameras.items())), header.fps)
        if found != wanted:
            raise UserError(
                f"{path} has cameras {found[0]} at {found[1]} fps, but these episodes would have {wanted[0]} at "
                f"{wanted[1]} fps (None: JPEG). Record with the same settings, or into another folder."
            )
        with open_hdf5(path) as file:
            if file.attrs.get("seed") == config.seed:
                first = max(first, int(file.attrs["attempt"]) + 1)
    return first


def _open_gym_aloha(console: Console) -> Callable[[int], Simulator]:
    """Check that the simulator is installed and can draw; only then is it imported."""
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"Recording needs the simulator, but {', '.join(missing)} cannot be imported here. Run `invoke record`, "
            "which installs it from envs/cpu/sim.lock, or see docs/record.md."
        )
    from vla_ft.simulation.rendering import has_card, select_backend

    backend = select_backend()
    console.print(
        f"drawing with {backend} ({'a graphics card is visible' if has_card() else 'no graphics card is visible'})",
        highlight=False,
    )
    from vla_ft.simulation.environment import CubeTransfer

    return CubeTransfer
