"""The guide's vocabulary, and what each word becomes in a configuration of ``vla_ft``. No other file knows both."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, PositiveInt

from vla_ft.config import RunConfig, check, run_config_from_dict
from vla_ft.data.damaged import find_damaged, without_damaged
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.registry import format_of
from vla_ft.data.mixture import split_parts
from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.data.split import EpisodeSplit
from vla_ft.data.windows import WindowIndex
from vla_ft.errors import UserError
from vla_ft.training.launch import processes_for
from vla_ft.weights.datasets import local_dataset

CLIP_NAMES = ("ViT-B-32", "ViT-B/32", "ViT-B-32-quickgelu")
CLIP_WEIGHTS = "clip-vit-b-32"
"""Name of the published weights for ``vla-ft fetch``."""
GUIDE_WORDS = {
    "batch.per_device": "batch_size", "checkpoint.every": "checkpoint_frequency", "checkpoint.keep_last": "keep_states",
    "data.allow_pickle": "allow_pickle", "data.cameras": "camera_names", "data.validation_fraction": "val_split",
    "data.workers": "num_workers", "devices": "devices", "execution.ensemble_window": "ensemble_window",
    "execution.temporal_ensemble": "temporal_ensemble", "logging.artifacts": "log_checkpoints",
    "logging.every": "log_frequency", "model.action_loss": "action_loss", "model.backbone": "encoder.name",
    "model.camera_fusion": "encoder.fuse", "model.chunk_size": "chunk_size",
    "model.decoder_layers": "num_decoder_layers", "model.dropout": "dropout",
    "model.encoder_layers": "num_encoder_layers", "model.feedforward_dim": "dim_feedforward", "model.heads": "nheads",
    "model.hidden_dim": "hidden_dim", "model.image_size": "image_size", "model.kl_weight": "kl_weight",
    "model.latent_dim": "latent_dim", "model.observation_steps": "temporal_context", "optimizer.lr": "lr",
    "optimizer.weight_decay": "weight_decay", "schedule.name": "use_cosine_schedule",
    "schedule.warmup_steps": "warmup_epochs", "seed": "seed", "steps": "num_epochs",
}  # fmt: skip
"""A run's keys that the guide has a word of its own for."""
FLAGS = {"data.path": "dataset_dir", "device": "device", "logging.name": "wandb_name",
         "logging.project": "wandb_project", "logging.tags": "wandb_tags", "output": "output_dir"}  # fmt: skip
"""The same for flags of ``scripts/train_act.py``."""
COUNTED_IN_EPOCHS = ("checkpoint.every", "schedule.name", "schedule.warmup_steps", "steps")
"""Keys whose value is another one in the guide's word: updates there, epochs here."""
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The guide's ``encoder`` section."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Literal["clip_vit", "pri3d"] = "clip_vit"
    model_name: str = "ViT-B-32"
    variant: Literal["resnet18", "resnet34", "resnet50"] = "resnet50"
    pretrained: bool | str | None = "openai"
    ckpt_path: str | None = None
    freeze: bool = True
    cache: bool = True
    fuse: Literal["none", "mean", "max", "concat_mlp", "gated", "bilinear"] = "mean"
    out_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """``configs/policy_act.yaml``: its comments say what each key means."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Literal["act"] = "act"
    chunk_size: PositiveInt = 50
    temporal_context: PositiveInt = 3
    hidden_dim: PositiveInt = 512
    nheads: PositiveInt = 8
    num_encoder_layers: PositiveInt = 4
    num_decoder_layers: PositiveInt = 7
    latent_dim: PositiveInt = 32
    dim_feedforward: PositiveInt = 3200
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    use_proprio: bool = True
    batch_size: PositiveInt = 8
    lr: Annotated[float, Field(gt=0)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    num_epochs: PositiveInt = 2000
    kl_weight: Annotated[float, Field(ge=0)] = 10.0
    action_loss: Literal["l1", "l2"] = "l1"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    use_cosine_schedule: bool = False
    num_workers: Annotated[int, Field(ge=0)] = 2
    devices: PositiveInt = 1
    seed: int = 42
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = 224
    preprocess_kind: Literal["clip", "imagenet"] | None = None
    camera_names: tuple[str, ...] | None = None
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    dataset_dir: str | None = None
    val_split: Annotated[float, Field(ge=0, lt=1)] = 0.1
    allow_pickle: bool = False
    """A configuration that does not mention pickles reads none; the shipped one does, for the guide's dataset."""
    checkpoint_frequency: PositiveInt = 10
    keep_states: PositiveInt = 5
    log_frequency: PositiveInt = 100
    log_checkpoints: bool = True
    temporal_ensemble: bool = False
    ensemble_window: PositiveInt = 10
    vla_ft: dict[str, Any] = field(default_factory=dict)
    action_dim: PositiveInt = 14
    """What the dataset decides; a run writes it, with ``state_dim`` and ``camera_names``, into its ``config.yaml``."""
    state_dim: Annotated[int, Field(ge=0)] = 14

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(height, width) that the encoder sees; None for the recorded one."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def cameras(self) -> tuple[str, ...] | None:
        """Camera names without the prefix that observations carry."""
        return self.camera_names and tuple(name.removeprefix(IMAGE_PREFIX) for name in self.camera_names)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the command line says beside the configuration."""

    output_dir: str
    device: Literal["auto", "cpu", "cuda"]
    dataset_dir: str | None = None
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str | None = None
    wandb_name: str | None = None
    wandb_tags: tuple[str, ...] = ()
    scale_lr: bool = False
    resume: str = "auto"
    weights: str | None = None
    """A file whose weights a new run starts from, instead of those of the encoder alone."""


@dataclass(frozen=True)
class Translation:
    """A run as ``vla_ft`` takes it, and how many updates the guide's epoch has in it."""

    run: RunConfig
    steps_per_epoch: int
    processes: int


def read_guide_config(path: Path, overrides: Sequence[str] = ()) -> GuideConfig:
    """A configuration file, with ``key=value`` words (dotted keys too) over it. Raises UserError."""
    if not path.is_file():
        raise UserError(
            f"No configuration at {path} (looked in {Path.cwd()}). Run from the project root, the folder that holds "
            "configs/ and scripts/, or give --config an absolute path."
        )
    try:
        loaded = OmegaConf.load(path)
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
    except Exception as error:  # the YAML library's errors have no common base that OmegaConf exports
        raise UserError(f"{path} with {' '.join(overrides) or 'no overrides'} cannot be read: {error}") from None
    return guide_config(merged)


def guide_config(values: Any) -> GuideConfig:
    """Check the guide's keys, from OmegaConf or a plain mapping; the nearest name is offered. Raises UserError."""
    if isinstance(values, GuideConfig):
        return values
    try:
        plain = OmegaConf.to_container(values, resolve=True) if isinstance(values, DictConfig) else dict(values)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"The ACT configuration is not a mapping of keys to values: {error}") from None
    assert isinstance(plain, dict)
    config = check(GuideConfig, {str(key): value for key, value in plain.items()}, "the ACT configuration")
    _refuse(config)
    return config


def _refuse(config: GuideConfig) -> None:
    """Raise UserError for what the guide or its authors' file can say and this model does not do."""
    encoder, own = config.encoder, "imagenet" if config.encoder.name == "pri3d" else "clip"
    wrong = {
        f"encoder.model_name is '{encoder.model_name}'; the CLIP that is built in is {CLIP_NAMES[0]}.": (
            encoder.name == "clip_vit" and encoder.model_name not in CLIP_NAMES
        ),
        f"encoder.out_dim is {encoder.out_dim}: features go straight to the transformer's width, hidden_dim "
        f"({config.hidden_dim}). Remove out_dim or set it to that.": encoder.out_dim not in (None, config.hidden_dim),
        f"preprocess_kind is '{config.preprocess_kind}', but {encoder.name} was trained with '{own}' statistics; "
        "others give wrong features. Remove preprocess_kind.": config.preprocess_kind not in (None, own),
        "use_proprio=false is not built: this ACT always sees the joints. Remove use_proprio.": not config.use_proprio,
        "encoder.freeze=true with pretrained=null would freeze random numbers. Set encoder.freeze=false, or give "
        "encoder.pretrained or encoder.ckpt_path.": encoder.freeze and not encoder.pretrained and not encoder.ckpt_path,
    }
    wrong |= {
        f"vla_ft.{key} is not read, because this project has its own word: write {word}.": True
        for key, word in {**GUIDE_WORDS, **FLAGS}.items()
        if _has(config.vla_ft, key)
    }
    found = [sentence for sentence, applies in wrong.items() if applies]
    if found:
        raise UserError("\n".join(found))
    _encoder_weights(config)


def _has(values: Mapping[str, Any], key: str) -> bool:
    """Whether a nested mapping says something about a dotted key."""
    head, _, rest = key.partition(".")
    if not rest or head not in values:
        return head in values
    return isinstance(values[head], Mapping) and _has(values[head], rest)


def model_settings(config: GuideConfig) -> dict[str, Any]:
    """The ``model`` section: sizes, encoder, fusion, and what ``vla_ft.model`` says over them."""
    shape = config.image_shape
    values = {
        "chunk_size": config.chunk_size,
        "observation_steps": config.temporal_context,
        "hidden_dim": config.hidden_dim,
        "heads": config.nheads,
        "feedforward_dim": config.dim_feedforward,
        "encoder_layers": config.num_encoder_layers,
        "vae_encoder_layers": config.num_encoder_layers,  # one number for both, as in the published command
        "decoder_layers": config.num_decoder_layers,
        "dropout": config.dropout,
        "latent_dim": config.latent_dim,
        "action_loss": config.action_loss,
        "kl_weight": config.kl_weight,
        "backbone": "clip_vit_b32" if config.encoder.name == "clip_vit" else config.encoder.variant,
        "camera_fusion": config.encoder.fuse,
        "image_size": None if shape is None else list(shape),
    }
    return _merged(values, config.vla_ft.get("model", {}))


def translate(config: GuideConfig, flags: Flags) -> Translation:
    """The run that the guide's configuration means for a dataset: opens it, because epochs become updates.

    An epoch is ceil(samples / global batch) updates. Raises UserError for data that cannot be read.
    """
    dataset = _dataset(config, flags)
    draft = _run_config(config, flags, dataset, steps_per_epoch=1, processes=1)
    processes = int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else processes_for(draft.devices, draft.device)
    samples = training_samples(draft)
    steps = math.ceil(samples / (draft.batch.per_device * draft.batch.accumulation * processes))
    run = _run_config(config, flags, dataset, steps_per_epoch=steps, processes=processes)
    return Translation(run, steps, processes)


def training_samples(run: RunConfig) -> int:
    """How many windows an epoch of a run has."""
    reader, split = open_split(run)
    return len(WindowIndex(reader.lengths, split.training, run.data.steps_per_episode, run.seed))


def open_split(run: RunConfig) -> tuple[EpisodeReader, EpisodeSplit]:
    """The episodes that a run trains on and holds out, as it will find them itself: damaged ones are left out."""
    data = run.data
    reader = data.open(data.path)
    if data.on_damage == "skip":
        reader = without_damaged(reader, find_damaged(reader))
    split, _ = split_parts(
        reader, fraction=data.validation_fraction, seed=run.seed, drop_unlabeled=data.drops_unlabeled
    )
    return reader, split


def _dataset(config: GuideConfig, flags: Flags) -> str:
    path = flags.dataset_dir or os.environ.get("ACT_DATASET_DIR") or config.dataset_dir
    if path is None:
        raise UserError(
            "No dataset is named. Give --dataset_dir, or dataset_dir in the configuration, or the environment variable "
            "ACT_DATASET_DIR."
        )
    return path


def _run_config(config: GuideConfig, flags: Flags, dataset: str, *, steps_per_epoch: int, processes: int) -> RunConfig:
    lr = config.lr * (processes if flags.scale_lr else 1)
    values: dict[str, Any] = {
        "recipe": "act",  # its published sizes aside, what `vla-ft plan recipe=act` starts from
        "policy": "act",
        "output": flags.output_dir,
        "device": flags.device,
        "devices": config.devices,
        "seed": config.seed,
        "resume": flags.resume,
        "data": _data(config, dataset),
        "model": model_settings(config),
        "steps": config.num_epochs * steps_per_epoch,
        "batch": {"per_device": config.batch_size},
        "optimizer": {"lr": lr, "weight_decay": config.weight_decay},
        "schedule": {
            "name": "cosine" if config.use_cosine_schedule else "constant",
            "warmup_steps": config.warmup_epochs * steps_per_epoch,
        },
        "checkpoint": {"every": config.checkpoint_frequency * steps_per_epoch, "keep_last": config.keep_states},
        "validation": {"every": steps_per_epoch, "samples": 512},
        "logging": {"updates_per_epoch": steps_per_epoch, **_logging(config, flags)},
        "execution": _execution(config),
        "init": _start(config, flags),
    }
    if config.encoder.freeze:
        values["freeze"] = ["backbone"]
        values |= {"frozen_features": {"parts": ["backbone"]}} if config.encoder.cache else {}
    return run_config_from_dict(_merged(values, config.vla_ft))


def _data(config: GuideConfig, dataset: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "path": dataset,
        "cameras": config.cameras,
        "validation_fraction": config.val_split,
        "workers": config.num_workers,
    }
    # A reader refuses options that are not its own, and only this format has pickles.
    return values | ({"allow_pickle": config.allow_pickle} if format_of(local_dataset(dataset)) == "npy" else {})


def _logging(config: GuideConfig, flags: Flags) -> dict[str, Any]:
    values: dict[str, Any] = {"every": config.log_frequency, "wandb": flags.wandb}
    if flags.wandb == "off":
        return values
    named = {"project": flags.wandb_project, "name": flags.wandb_name}
    values |= {key: value for key, value in named.items() if value is not None}
    return values | {"tags": list(flags.wandb_tags), "artifacts": config.log_checkpoints}


def _execution(config: GuideConfig) -> dict[str, Any]:
    if not config.temporal_ensemble:
        return {}
    return {"temporal_ensemble": True, "ensemble_window": config.ensemble_window, "ensemble_weights": "uniform"}


def _start(config: GuideConfig, flags: Flags) -> dict[str, Any]:
    if flags.weights is not None:
        return {"path": flags.weights, "layout": "vla_ft"}
    found = _encoder_weights(config)
    return {} if found is None else {"path": found[0], "layout": found[1]}


def _encoder_weights(config: GuideConfig) -> tuple[str, str] | None:
    """Where the encoder's weights are and in which layout; None for a random start on request. Raises UserError."""
    encoder = config.encoder
    layout = "clip" if encoder.name == "clip_vit" else "pri3d"
    expected = "openai" if encoder.name == "clip_vit" else True
    if encoder.pretrained not in (expected, None, False):
        shown = "'openai'" if encoder.name == "clip_vit" else "true"
        raise UserError(
            f"encoder.pretrained is {encoder.pretrained!r}; {encoder.name} takes {shown} for its published weights, "
            "or null for a random start. For a file of yours set encoder.ckpt_path."
        )
    if encoder.ckpt_path is not None:
        return encoder.ckpt_path, layout
    if not encoder.pretrained:
        return None
    if encoder.name == "pri3d" and encoder.variant == "resnet34":
        raise UserError(
            "PRI3D was published for resnet18 and resnet50, not for resnet34. Set encoder.variant, or give a file of "
            "yours in encoder.ckpt_path."
        )
    return (CLIP_WEIGHTS if encoder.name == "clip_vit" else f"pri3d-{encoder.variant}"), layout


def _merged(values: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``values``, section by section."""
    result = dict(values)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result


def resolved(config: GuideConfig, **facts: Any) -> str:
    """The configuration as YAML, with what the dataset decided: all that ``build_act_policy`` needs."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(dataclasses.replace(config, **facts))))
