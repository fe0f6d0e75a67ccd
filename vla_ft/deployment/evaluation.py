"""Action error of a checkpoint on recorded episodes, beside the error of repeating the last action."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from vla_ft.config import ExecutionConfig
from vla_ft.data.damaged import find_damaged, without_damaged
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.descriptions import load_described
from vla_ft.data.formats.registry import format_of
from vla_ft.data.formats.rlds_mapping import SIDECAR
from vla_ft.data.formats.tfds_folder import open_folder
from vla_ft.data.mixture import split_parts
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.standardize.base import GRIPPER
from vla_ft.data.statistics import source_hash
from vla_ft.deployment.action_errors import action_errors, executed_errors
from vla_ft.deployment.error_table import error_table
from vla_ft.deployment.predictor import Held, Precision, Predictor
from vla_ft.errors import UserError
from vla_ft.weights.datasets import local_dataset


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What ``vla-ft evaluate`` takes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    checkpoint: str
    """A checkpoint, or a run folder for its latest one; or a published policy: LeRobot's folder of ACT, open-pi-zero's
    ``step*.pt``."""
    statistics: str | None = None
    """open-pi-zero's weights alone: the JSON file of the data they were trained on."""
    camera: str | None = None
    """The same: what its one camera is called in the dataset; null: ``primary``."""
    model: dict[str, Any] = field(default_factory=dict)
    """The same: settings of ``model`` that the file does not say (``model.tokenizer=...``)."""
    data: str
    """A dataset of the same robot."""
    dataset: str | None = None
    """Which of the datasets of a mixture it is."""
    episodes: Literal["held_out", "all"] = "held_out"
    """``held_out``: the split of the run that trained the checkpoint, valid for the dataset it trained on."""
    samples: Annotated[int, Field(gt=0)] = 512
    batch: Annotated[int, Field(gt=0)] = 16
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "run"
    """``run``: as the run computed; ``fp32`` or ``bf16`` whatever it was."""
    held: Held = "fp32"
    """How weights are held; ``bf16`` halves their memory and computes in bfloat16."""
    compile: bool = False
    """``torch.compile`` block by block."""
    execution: ExecutionConfig | None = None
    """Adds the error of the actions that would be executed so along whole episodes (``execution.temporal_ensemble``).
    Needs a prediction at every step that a robot would ask at; null leaves it out."""
    output: str | None = None
    """A ``.json`` file for the numbers; their picture goes beside it, as ``.png``."""


def evaluate(config: EvaluationConfig) -> str:
    """Evaluate and return a table as text; raises UserError."""
    return error_table(measure(config))


def measure(config: EvaluationConfig) -> dict[str, Any]:
    """The numbers of an evaluation, also written to ``config.output``. Raises UserError.

    The latent of a policy that has one is zero and targets are not shown to it: what a robot would get.
    """
    _refuse_output(config.output)
    predictor = Predictor.load(
        Path(config.checkpoint),
        config.device,
        config.dataset,
        config.precision,
        held=config.held,
        compiled=config.compile,
        statistics=None if config.statistics is None else Path(config.statistics),
        camera=config.camera,
        settings=config.model,
    )
    reader = open_data(predictor, config.data, config.dataset)
    if predictor.config.data.on_damage == "skip":  # as the run did
        reader = without_damaged(reader, find_damaged(reader))
    _refuse_other_robot(predictor, reader)
    held_out = config.episodes == "held_out"
    episodes = _held_out(predictor, reader) if held_out else np.arange(len(reader.lengths))
    numbers = action_errors(predictor, reader, episodes, config.samples, config.batch)
    if config.execution is not None:
        numbers |= executed_errors(predictor, reader, episodes, config.execution, config.samples)
    numbers |= {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "episodes": episodes.tolist(),
        "precision": predictor.precision,
        "action_units": list(reader.description.action_units),
    }
    if config.output is not None:
        Path(config.output).write_text(json.dumps(numbers, indent=1))
    return numbers


def open_data(predictor: Predictor, data: str, dataset: str | None) -> EpisodeReader:
    """The dataset at ``data`` as a checkpoint is shown it: read as its run did; for a published policy, RLDS of the
    dataset that it was trained on in its standard form. Raises UserError."""
    config, published, place = predictor.config.data, predictor.published, local_dataset(data)
    if published is not None and published.standardization is not None and format_of(place) == "rlds":
        folder = open_folder(place)
        sidecar = folder.path / SIDECAR
        standard = sidecar.is_file() and load_described(sidecar)[1].gripper == GRIPPER  # `vla-ft data convert` wrote it
        if folder.name == published.standardization and not standard:
            config = dataclasses.replace(config, mix=published.standardization)
            return config.open_one(data, published.standardization)
    return config.open_one(data, dataset)


def _refuse_output(output: str | None) -> None:
    if output is None:
        return
    if Path(output).suffix != ".json":
        raise UserError(f"output={output} must end in .json; the picture beside it ends in .png.")
    if not Path(output).absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")


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


def _refuse_other_robot(predictor: Predictor, reader: EpisodeReader) -> None:
    trained, seen = predictor.description, reader.description
    if predictor.published is not None:
        trained = _completed(trained, seen, predictor.published.names_known)
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


def _completed(trained: DatasetDescription, seen: DatasetDescription, named: bool) -> DatasetDescription:
    """A published policy's description with what it, or the dataset, leaves open taken from the dataset: kind and mode
    where either is unknown and, unless it is ``named``, names where there are as many."""
    taken: dict[str, Any] = {}
    for part in ("action_names", "proprio_names"):
        if not named and len(getattr(seen, part)) == len(getattr(trained, part)):
            taken[part] = getattr(seen, part)
            taken[part.replace("names", "units")] = getattr(seen, part.replace("names", "units"))
    for part in ("action_kind", "action_mode"):
        if "unknown" in (getattr(seen, part), getattr(trained, part)):
            taken[part] = getattr(seen, part)
    return dataclasses.replace(trained, **taken)
