"""The guide's view of a run: its lines on the terminal, its ``config.yaml`` and its ``act-train-N.pth``.

The training itself is ``vla_ft``'s; this watches it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from policy.act.advice import in_guide_words
from policy.act.translator import GuideConfig, Translation, resolved
from policy.act.weights import Note, export_weights, set_aside, weights_file
from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.errors import UserError
from vla_ft.training.checkpointing import disk_errors, replace_text
from vla_ft.training.observer import Beginning, Observer

SETTINGS = "settings.txt"
"""File of a run folder: every effective setting, as ``vla-ft train`` prints it on the terminal."""


class GuideConsole(Observer):
    """Prints the guide's lines and keeps the guide's files; ``quiet`` is the console of the trainer itself."""

    def __init__(self, config: GuideConfig, translation: Translation, shown: Mapping[str, str]) -> None:
        """``shown``: ``Config``, ``Dataset`` and ``Output`` as they were typed."""
        self._config, self._run, self._shown = config, translation.run, shown
        self._steps_per_epoch, self._folder = translation.steps_per_epoch, Path(translation.run.output)
        self._base_lr, self._text = config.lr, io.StringIO()
        self.quiet = _Quiet(self._text)

    def opened(self) -> None:
        """The first lines, before anything is built."""
        _say("=== ACT Training ===")
        for name, value in self._shown.items():
            _say(f"{name}: {value}")
        _say("\nBuilding ACT policy...")

    def started(self, beginning: Beginning) -> None:
        """Counts, and what a resume changed."""
        self.quiet.silent = True
        _say(f"Total parameters: {beginning.parameters:,}")
        _say(f"Trainable parameters: {beginning.trainable:,}")
        _say("\nCreating data loaders...")
        _say(f"Training samples: {beginning.training_samples}")
        if beginning.processes > 1:
            _say(self._rate_rule(beginning))
        self._keep_files(beginning)
        if beginning.checkpoint is not None:
            done = beginning.step / self._steps_per_epoch
            _say("; ".join([f"Resuming: epoch {done:g} of {self._config.num_epochs} is done", *beginning.notes]))
        _say("\nStarting training...")

    def worded(self, said: str) -> str:
        """Warnings offer the guide's keys."""
        return in_guide_words(said)

    def logged(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """One line, as the guide shows it. ``loss`` is ``action_loss + kl_weight * kl_loss``."""
        place = f"Epoch {math.ceil(step / self._steps_per_epoch)}/{self._config.num_epochs}, Step {step}"
        names = {"loss": "total_loss", "action_loss": "action_loss", "kl_loss": "kl_loss", "val_loss": "val_loss"}
        shown = [f"{name}={metrics[key]:.3f}" for name, key in names.items() if key in metrics]
        _say(f"{place}: " + ", ".join(shown))

    def checkpointed(self, step: int, folder: Path) -> None:
        """The guide's file where an epoch ends; inside one, as when a run is stopped, there is the state alone."""
        epoch, rest = divmod(step, self._steps_per_epoch)
        if rest:
            _say(f"State saved inside epoch {epoch + 1}: {folder}. The same command goes on from there.")
        else:
            _say(f"Checkpoint saved: {export_weights(self._folder, folder, epoch, step)}")

    def artifact(self, step: int, folder: Path) -> Sequence[Path]:
        """For W&B: the guide's file and the configuration that builds its network; inside an epoch nothing."""
        epoch, rest = divmod(step, self._steps_per_epoch)
        return () if rest else (weights_file(self._folder, epoch), self._folder / "config.yaml")

    def _rate_rule(self, beginning: Beginning) -> str:
        rate = self._run.optimizer.lr
        scaled = f"{self._base_lr:g} x {beginning.processes} (--scale_lr)" if rate != self._base_lr else "as given"
        return (
            f"Learning rate: {rate:g}, {scaled}; an update sees {beginning.global_batch} samples = batch_size "
            f"{self._run.batch.per_device} on each of {beginning.processes} processes"
        )

    def _keep_files(self, beginning: Beginning) -> None:
        about = beginning.description
        if about.environment_names:
            raise UserError(
                f"{about.name} has an environment state ({', '.join(about.environment_names[:3])}, ...), for which the "
                "guide's observations have no word. Train it in this project's own: `vla-ft train recipe=act`."
            )
        facts = {
            "action_dim": about.action_dim,
            "state_dim": about.proprio_dim,
            "camera_names": tuple(IMAGE_PREFIX + camera for camera in about.cameras),
            "dataset_dir": self._run.data.path,
        }
        with disk_errors("The run's configuration", self._folder):
            replace_text(self._folder / "config.yaml", resolved(self._config, **facts))
            replace_text(self._folder / SETTINGS, self._text.getvalue())
        set_aside(self._folder, beginning.step, beginning.checkpoint)
        epoch, rest = divmod(beginning.step, self._steps_per_epoch)
        # A kill may have come between the state and the weights.
        own = beginning.checkpoint is not None and beginning.checkpoint.parent.parent == self._folder
        weights = weights_file(self._folder, epoch)
        if own and not rest and (not weights.is_file() or Note.read(weights) is None):
            assert beginning.checkpoint is not None
            export_weights(self._folder, beginning.checkpoint, epoch, beginning.step)


class _Quiet(Console):
    """Keeps what the trainer prints. Sentences of its beginning, such as how far the features of a frozen encoder are,
    reach the terminal too: that can take minutes. Its table does not, nor, once ``silent``, its own line a step."""

    def __init__(self, text: io.StringIO) -> None:
        super().__init__(file=text, width=110)
        self.silent = False

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's."""
        super().print(*objects, **options)
        if not self.silent and all(isinstance(one, str) for one in objects):
            _say(" ".join(objects))


def _say(line: str) -> None:
    print(line, flush=True)
