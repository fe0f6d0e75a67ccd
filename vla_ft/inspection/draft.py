"""``vla-ft recipe from-data``: a complete recipe for a dataset, and what could not be known about it."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict

from vla_ft.config import DataConfig, load_run_config, read_recipe, recipe_names
from vla_ft.data.damaged import Damaged, find_damaged, without_damaged
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.registry import format_of
from vla_ft.data.loading import build_loader
from vla_ft.data.mixture import MixtureReader, mixture_statistics, split_parts
from vla_ft.data.order import BatchPlan
from vla_ft.data.split import EpisodeSplit
from vla_ft.data.statistics import DatasetStatistics, cached_statistics, check_finite, statistics_cache
from vla_ft.data.windows import build_sample
from vla_ft.errors import UserError
from vla_ft.inspection.recipe_text import recipe_text
from vla_ft.inspection.unknowns import unknowns
from vla_ft.policies.registry import load_policy
from vla_ft.weights.datasets import PREFIX, dataset_entry

_STEPS = 20_000
"""Steps of a policy that has no published recipe here."""
_NOT_COPIED = ("policy", "data", "model", "output", "recipe")


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """What ``vla-ft recipe from-data`` takes; ``data`` as in a recipe."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: DataConfig
    policy: str
    base: str | None = None
    """The recipe whose training settings are taken; null takes the policy's published one."""
    output: str | None = None
    """The file to write; null means ``<dataset>-<policy>.yaml`` here."""
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A recipe that was written, and what a person should say or look at."""

    path: Path
    notes: tuple[str, ...]


def draft(config: DraftConfig, said: Collection[str] = ()) -> Draft:
    """Write a recipe that trains as it is: a batch of the data has gone through it. Raises UserError.

    ``said``: the keys of ``data`` that the user gave, which stand also where they say what is the default anyway.
    """
    policy = load_policy(config.policy)
    base = _base(config)
    config = dataclasses.replace(config, data=_read_as_there(config.data, base, said))
    whole = config.data.open(config.data.path)
    damaged = find_damaged(whole) if config.data.on_damage == "skip" else Damaged()
    reader = without_damaged(whole, damaged)
    output = _output(config, reader)
    adapt = getattr(policy, "adapt", None)
    base, fitted = adapt(base, reader.description) if adapt else (base, [])
    seed = int(base.get("seed", 0))
    split, dropped = split_parts(
        reader, fraction=config.data.validation_fraction, seed=seed, drop_unlabeled=config.data.drops_unlabeled
    )
    statistics = _statistics(reader, split)
    suggest = getattr(policy, "suggest", None)
    model = {**(base.get("model") or {}), **(suggest(reader.description, statistics) if suggest else {})}
    notes = unknowns(reader, statistics, model.get("chunk_size"))
    notes += fitted
    notes += [f"damaged: {damaged}"] if damaged.episodes else []
    notes += [f"{dropped}"] if dropped.unlabeled else []
    notes += [] if suggest else [f"policy '{config.policy}' makes no suggestions: its model has its defaults"]
    values = _values(config, said, reader, base, model, int(reader.lengths[split.training].sum()))
    text = recipe_text(values, reader, statistics, _where(statistics), notes)
    _publish(output, text, reader, split, statistics)
    return Draft(path=output, notes=tuple(notes))


def _output(config: DraftConfig, reader: EpisodeReader) -> Path:
    name = Path(config.data.path).resolve().name if isinstance(reader, MixtureReader) else reader.description.name
    if config.data.path.startswith(PREFIX):  # not the name of the folder that it was fetched to
        name = dataset_entry(config.data.path).name.partition("@")[0].rpartition("/")[2]
    output = Path(config.output or f"{name}-{config.policy}.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"output={output} is no name of a recipe. Expected one that ends in .yaml.")
    if output.exists() and not config.overwrite:
        raise UserError(f"{output} exists already. Choose another output=, or add overwrite=true.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")
    return output


def _base(config: DraftConfig) -> dict[str, Any]:
    """The recipe whose training settings are taken: the policy's first that is not for mock data, or none."""
    if config.base is not None:
        base = read_recipe(config.base)
        if base.get("policy") != config.policy:
            raise UserError(f"Recipe {config.base} is of policy '{base.get('policy')}', not '{config.policy}'.")
        return base
    best = (config.policy, f"{config.policy}-finetune")
    names = sorted((n for n in recipe_names() if not n.endswith("-mock")), key=lambda n: (n not in best, n))
    return next((r for r in map(read_recipe, names) if r.get("policy") == config.policy), {"steps": _STEPS})


def _read_as_there(data: DataConfig, base: dict[str, Any], said: Collection[str]) -> DataConfig:
    """The data read and augmented as the base recipe does, where the user says nothing of it: what its weights know."""
    read = base.get("data") or {}
    if "image_size" not in said and read.get("image_size"):
        height, width = read["image_size"]
        data = dataclasses.replace(data, image_size=(height, width))
    if "augmentation" not in said and isinstance(read.get("augmentation"), str):
        data = dataclasses.replace(data, augmentation=read["augmentation"])
    return data


def _statistics(reader: EpisodeReader, split: EpisodeSplit) -> DatasetStatistics:
    """Of the training episodes; kept where the run will look for them."""
    check_finite(reader, split.validation)
    with tempfile.TemporaryDirectory(prefix="vla-ft-draft-") as folder:
        if isinstance(reader, MixtureReader):
            return mixture_statistics(reader, split.training, Path(folder))
        return cached_statistics(reader, split.training, Path(folder) / "statistics.json")


def _where(statistics: DatasetStatistics) -> list[str]:
    """The files that hold the statistics, with ``~`` for the user's home."""
    files = [statistics_cache() / f"{part.source_hash}.json" for part in statistics.each().values()]
    home = Path.home()
    shown = [f"~/{file.relative_to(home)}" if file.is_relative_to(home) else str(file) for file in files]
    return [text for text, file in zip(shown, files, strict=True) if file.is_file()]


def _values(
    config: DraftConfig,
    said: Collection[str],
    reader: EpisodeReader,
    base: dict[str, Any],
    model: dict[str, Any],
    windows: int,
) -> dict[str, Any]:
    """The recipe's values, nested, in the order in which they are written."""
    copied = {key: value for key, value in base.items() if key not in _NOT_COPIED}
    published = int((copied.get("batch") or {}).get("per_device", 8))
    copied["batch"] = {**(copied.get("batch") or {}), "per_device": max(1, min(published, windows))}
    data = _given(config.data, said)
    if Path(config.data.path).exists():  # anything else is a name, not a place
        data["path"] = os.path.abspath(config.data.path)
    data.setdefault("cameras", list(reader.description.cameras))
    if config.data.mix is None:
        if Path(config.data.path).exists():
            data["format"] = format_of(Path(config.data.path), config.data.format)
        if "fps" in reader.assumed:
            data["fps"] = reader.description.fps
    data["validation_fraction"] = config.data.validation_fraction
    data.setdefault("workers", (base.get("data") or {}).get("workers", config.data.workers))
    return {"policy": config.policy, "data": data, "model": model, **copied}


def _given(data: DataConfig, said: Collection[str]) -> dict[str, Any]:
    """What the user said, and what differs from a configuration without words. null is what a recipe has unsaid."""
    usual = dataclasses.asdict(DataConfig(path=data.path))
    settled = {key for key, value in dataclasses.asdict(data).items() if key == "path" or value != usual[key]}
    settled |= {key for key in said if getattr(data, key) is not None}
    return {key: value for key, value in dataclasses.asdict(data).items() if key in settled}


def _publish(
    output: Path, text: str, reader: EpisodeReader, split: EpisodeSplit, statistics: DatasetStatistics
) -> None:
    """Write the recipe once it has been read back and has proved itself."""
    beside = output.with_name(f".{output.stem}.draft{output.suffix}")
    try:
        beside.write_text(text)
        _prove(beside, reader, split, statistics)
        os.replace(beside, output)
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror}. Name a file in a folder of yours.") from error
    finally:
        beside.unlink(missing_ok=True)


def _prove(path: Path, reader: EpisodeReader, split: EpisodeSplit, statistics: DatasetStatistics) -> None:
    """The recipe is complete, its model fits the data (built without storage), and a batch of the data collates."""
    run = load_run_config([f"recipe={path}"])
    policy = load_policy(run.policy)
    without_files = getattr(policy, "without_files", None)  # a tokenizer may not be fetched yet
    model = without_files(run.model) if without_files else run.model
    processor = policy.build_processor(model, reader.description, statistics)
    with torch.device("meta"):
        policy.build_model(run.model, reader.description)
    if processor.example_instruction is not None:  # this data's instructions may not be embedded yet
        sample = build_sample(reader, int(split.training[0]), 0, processor.window, processor.keys)
        sample["task"] = {"language_instruction": processor.example_instruction}
        processor.collate([sample])
        return
    windows = int(np.asarray(reader.lengths)[split.training].sum())
    plan = BatchPlan(per_device=min(2, windows), world=1, rank=0, accumulation=1)
    next(iter(build_loader(reader, split.training, processor, plan, seed=run.seed)))
