"""Action error of a checkpoint on recorded episodes, beside the error of repeating the last action."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from vla_ft.data.damaged import find_damaged, without_damaged
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.loading import evenly_spaced
from vla_ft.data.mixture import split_parts
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import source_hash
from vla_ft.data.windows import WindowIndex, build_sample
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What ``vla-ft evaluate`` takes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """A checkpoint, or a run folder for its latest one."""
    data: str
    """A dataset of the same robot."""
    dataset: str | None = None
    """Which of the datasets of a mixture it is."""
    episodes: Literal["held_out", "all"] = "held_out"
    """``held_out``: the split of the run that trained the checkpoint, valid for the dataset it trained on."""
    samples: Annotated[int, Field(gt=0)] = 512
    batch: Annotated[int, Field(gt=0)] = 16
    device: Literal["cpu", "cuda"] = "cpu"
    output: str | None = None
    """Where to write the numbers as JSON."""


def evaluate(config: EvaluationConfig) -> str:
    """Evaluate and return a table as text; raises UserError."""
    if config.output is not None and not Path(config.output).absolute().parent.is_dir():
        raise UserError(f"output={config.output} cannot be written: its folder does not exist. Make it first.")
    predictor = Predictor.load(Path(config.checkpoint), config.device, config.dataset)
    reader = predictor.config.data.open_one(config.data, config.dataset)
    if predictor.config.data.on_damage == "skip":  # as the run did
        reader = without_damaged(reader, find_damaged(reader))
    _refuse_other_robot(predictor, reader)
    held_out = config.episodes == "held_out"
    episodes = _held_out(predictor, reader) if held_out else np.arange(len(reader.lengths))
    numbers = action_errors(predictor, reader, episodes, config.samples, config.batch)
    numbers |= {"checkpoint": config.checkpoint, "data": config.data, "episodes": episodes.tolist()}
    if config.output is not None:
        Path(config.output).write_text(json.dumps(numbers, indent=1))
    return _table(numbers)


def _held_out(predictor: Predictor, reader: EpisodeReader) -> np.ndarray:
    """The episodes that the checkpoint's run held out, int64; only its own dataset can tell which these are."""
    config = predictor.config
    split, _ = split_parts(
        reader,
        fraction=config.data.validation_fraction,
        seed=config.seed,
        drop_unlabeled=config.data.drops_unlabeled,
    )
    if source_hash(reader, split.training) != predictor.processor.statistics.source_hash:
        raise UserError(
            "This is not the dataset that the checkpoint was trained on, or it has changed since: which episodes were "
            "held out cannot be told. Use episodes=all."
        )
    if not len(split.validation):
        raise UserError("The checkpoint's run held no episodes out. Use episodes=all.")
    return split.validation


def action_errors(
    predictor: Predictor, reader: EpisodeReader, episodes: np.ndarray, samples: int, batch: int
) -> dict[str, Any]:
    """Mean absolute error over evenly spaced windows, per horizon step, steps past an episode's end left out.

    ``policy`` and ``repeat_last_action`` are float lists [horizon] in robot units, ``*_normalized`` the same divided by
    the training data's standard deviation, which weighs every joint alike. The baseline repeats the action that came
    just before the chunk; windows at an episode's start have none and are left out.
    """
    processor = predictor.processor
    windows = WindowIndex(reader.lengths, episodes)
    places = [windows.locate(int(i)) for i in evenly_spaced(len(windows), samples)]
    places = [(episode, step) for episode, step in places if step + reader.action_offset >= 1]
    if not places:
        raise UserError("No window of these episodes has an action before it: they are too short to evaluate on.")
    std = np.maximum(processor.statistics["action"].std, 1e-2)
    totals: dict[str, np.ndarray] = {}
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        read = [build_sample(reader, e, s, processor.window, processor.keys) for e, s in part]
        target = np.stack([sample["action"] for sample in read])
        real = np.stack([sample["action_pad_mask"] for sample in read])[..., None]
        last = np.stack([_previous_action(reader, e, s) for e, s in part])
        for name, guess in {"policy": predictor.predict_samples(read), "repeat_last_action": last}.items():
            error = np.abs(guess - target) * real
            for key, value in {name: error, f"{name}_normalized": error / std}.items():
                totals[key] = totals.get(key, 0) + value.mean(-1).sum(0)
        totals["count"] = totals.get("count", 0) + real[..., 0].sum(0)
    count = totals.pop("count")
    overall = {f"{key}_mean": float(value.sum() / count.sum()) for key, value in totals.items()}
    steps = {key: (value / np.maximum(count, 1)).tolist() for key, value in totals.items()}
    return {"windows": len(places), **overall, **steps}


def _previous_action(reader: EpisodeReader, episode: int, step: int) -> np.ndarray:
    """float32 [1, A]: the action just before the chunk that starts at ``step``."""
    return reader.read(episode, np.array([step + reader.action_offset - 1]), ("action",))["action"]


def _refuse_other_robot(predictor: Predictor, reader: EpisodeReader) -> None:
    trained, seen = predictor.description, reader.description
    if predictor.published is not None:  # such a folder tells numbers of dimensions alone
        trained = _with_names_of(seen, trained)
    if predictor.config.data.mix is not None:
        # A mixture is trained on what its datasets share: this one may have more.
        shared = {name: size for name, size in seen.cameras.items() if name in trained.cameras}
        proprio = (seen.proprio_names, seen.proprio_units) if trained.proprio_dim else ((), ())
        seen = dataclasses.replace(seen, cameras=shared, proprio_names=proprio[0], proprio_units=proprio[1])
    for what in ("action_names", "proprio_names", "cameras", "action_kind", "action_mode"):
        if getattr(trained, what) != getattr(seen, what):
            raise UserError(
                f"The checkpoint was trained with {what} {getattr(trained, what)}, this dataset has "
                f"{getattr(seen, what)}. Give a dataset of the same robot and cameras."
            )


def _with_names_of(seen: DatasetDescription, trained: DatasetDescription) -> DatasetDescription:
    """``trained`` with the names of a dataset where it has as many dimensions."""
    names = {}
    for part in ("action_names", "proprio_names"):
        if len(getattr(seen, part)) == len(getattr(trained, part)):
            names[part] = getattr(seen, part)
            names[part.replace("names", "units")] = getattr(seen, part.replace("names", "units"))
    return dataclasses.replace(trained, action_kind=seen.action_kind, action_mode=seen.action_mode, **names)


def _table(numbers: dict[str, Any]) -> str:
    horizon = len(numbers["policy"])
    marks = sorted({0, horizon // 4, horizon // 2, horizon - 1})
    heads = ["mean", *(f"step {mark + 1}" for mark in marks)]
    lines = [
        f"{numbers['windows']} windows of {len(numbers['episodes'])} episodes; mean absolute error of the action chunk",
        f"{'':<34}" + "".join(f"{head:>10}" for head in heads),
    ]
    for key, title in {
        "policy": "policy, robot units",
        "repeat_last_action": "repeat last action, robot units",
        "policy_normalized": "policy, in standard deviations",
        "repeat_last_action_normalized": "repeat last action, in std. dev.",
    }.items():
        values = [numbers[f"{key}_mean"], *(numbers[key][mark] for mark in marks)]
        lines.append(f"{title:<34}" + "".join(f"{value:>10.4f}" for value in values))
    return "\n".join(lines)
