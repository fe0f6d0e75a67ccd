"""A run's configuration: loads a recipe, merges ``key=value`` overrides, checks every key, type and range.

OmegaConf reads and merges; pydantic checks the plain dataclasses below. The ``model`` section is the policy's own
dataclass, found through the registry.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from vla_ft.data.augmentation import AugmentationConfig, RecipeName, find_augmentation
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.mock import MockConfig
from vla_ft.data.opening import (
    NOT_STANDARDIZED,
    MixEntry,
    Positive,
    ReadConfig,
    find_mix,
    open_mixture,
    open_part,
    open_read,
)
from vla_ft.data.trimming import trimmed_reader
from vla_ft.errors import UserError, nearest, unknown
from vla_ft.policies.published import published_settings
from vla_ft.policies.registry import load_policy
from vla_ft.weights.datasets import local_dataset

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "act-mock"
_STRICT = ConfigDict(extra="forbid")

NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
EngineName = Literal["auto", "single", "ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3"]
Precision = Literal["fp32", "bf16", "bf16_stochastic", "bf16_kahan"]
_OFF = BeforeValidator(lambda value: "off" if value is False else value)  # YAML reads `off` as a boolean
PlanAnswer = Annotated[Literal["refuse", "warn", "off"], _OFF]
T = TypeVar("T")
Name = TypeVar("Name")

# A published choice by its name, or one's own. The tags keep mistakes in one from being explained as the other's.
NamedOr = Annotated[
    Annotated[Name, Tag("<name>")] | Annotated[T, Tag("<own>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<own>"),
]


@dataclass(frozen=True, kw_only=True)
class DataConfig(ReadConfig):
    """Which demonstrations, and how they are read."""

    __pydantic_config__ = _STRICT

    path: str
    """A folder of demonstrations; ``hub:owner/name[@revision]``, which ``vla-ft fetch dataset`` brought; or ``mock``: a
    small real dataset is then written into the run folder and read. With ``mix``, the folder of its datasets."""
    mix: NamedOr[str, dict[str, MixEntry]] | None = None
    """Several datasets instead of one: a published mix by name, one's own (see ``MixEntry``), or a folder of RDT's
    registration files (``finetune_datasets.json`` and so on)."""
    format: str = "auto"
    augmentation: NamedOr[RecipeName, AugmentationConfig] = "none"
    """Of training images: a published recipe (``cogact``, ``pizero``) or one's own ranges."""
    drop_unlabeled: bool | None = None
    """Leave out episodes without an instruction, with a count; null does so for published mixes alone, as they do."""
    instructions: Literal["first", "vary"] = "first"
    """Whether training takes the first of several wordings of an episode's instruction, or draws one each time."""
    skip_still: Annotated[float, Field(gt=0)] | None = None
    """Leave out an episode's first frames, up to the one before any joint has moved by more than this (RDT: 0.01)."""
    shortest: Positive | None = None
    """Leave out episodes of fewer steps, by name (RDT: 128)."""
    steps_per_episode: Positive | None = None
    """At most so many steps of an episode in each pass over the data, others in the next (open-pi-zero: 100)."""
    on_damage: Literal["error", "skip"] = "error"
    """An episode whose numbers cannot be read or are not finite ends the run, or is left out, with a count. Which are,
    is found before the run by reading all numbers; an image that cannot be read is an error either way."""
    validation_fraction: Fraction = 0.1
    """Share of the *episodes* held out. 0 trains on everything."""
    workers: NotNegative = 2
    mock: MockConfig = field(default_factory=MockConfig)

    def reader_options(self) -> dict[str, Any]:
        """The reader's own options; under ``skip`` damaged episodes are told when they are read, not at opening."""
        return super().reader_options() | ({"tolerant": True} if self.on_damage == "skip" else {})

    @property
    def augmented(self) -> bool:
        """Whether training images are drawn anew in every epoch: features of them cannot be kept."""
        return find_augmentation(self.augmentation, 0) is not None

    @property
    def drops_unlabeled(self) -> bool:
        """``drop_unlabeled`` with its default resolved."""
        return isinstance(self.mix, str) if self.drop_unlabeled is None else self.drop_unlabeled

    def open(self, path: str) -> EpisodeReader:
        """The reader of all the data, of damaged episodes too (see ``on_damage``); ``path`` may be ``hub:...``.

        Raises UserError.
        """
        options, place = self.reader_options(), local_dataset(path)
        if self.mix is None:
            reader = open_read(place, self.format, NOT_STANDARDIZED, self.cameras, self.image_size, options)
            return self._trimmed(reader)
        entries = {name: self._located(entry) for name, entry in find_mix(self.mix).items()}
        mixture = open_mixture(place, entries, self.cameras, self.image_size, options)
        return MixtureReader({n: self._trimmed(part) for n, part in mixture.parts.items()}, mixture.weights)

    def _trimmed(self, reader: EpisodeReader) -> EpisodeReader:
        return trimmed_reader(reader, self.skip_still, self.shortest)

    def open_one(self, path: str, dataset: str | None) -> EpisodeReader:
        """A dataset at ``path`` as ``dataset`` of the mix is read; without a mix, as the only one. Raises UserError."""
        if self.mix is None:
            return self.open(path)
        entries = find_mix(self.mix)
        if dataset is None and len(entries) == 1:
            dataset = next(iter(entries))
        if dataset is None or dataset not in entries:
            raise unknown("dataset", str(dataset), entries)
        place, entry = local_dataset(path), entries[dataset]
        part = open_part(place, dataset, entry, self.cameras, self.image_size, self.reader_options())
        return self._trimmed(part)

    @staticmethod
    def _located(entry: MixEntry) -> MixEntry:
        """The entry with the folder that a name of a hub stands for."""
        return entry if entry.path is None else dataclasses.replace(entry, path=str(local_dataset(entry.path)))


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Global batch = per_device x accumulation x processes."""

    __pydantic_config__ = _STRICT

    per_device: Positive = 8
    accumulation: Positive = 1


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate factor as a function of the step: linear warm-up, then constant, linear or cosine decay, or cosine
    cycles that begin anew (Loshchilov and Hutter, 2017)."""

    __pydantic_config__ = _STRICT

    name: Literal["constant", "linear", "cosine", "cosine_restarts"] = "constant"
    warmup_steps: NotNegative = 0
    """``cosine_restarts`` warms up in every cycle, from ``final_fraction``, which its first two updates share."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor reached at the last step of ``linear`` and ``cosine``; the lowest one of ``cosine_restarts``."""
    cycle_steps: Positive | None = None
    """``cosine_restarts``: steps of the first cycle, its warm-up included."""
    cycle_growth: Annotated[float, Field(gt=0)] = 1.0
    """How many times as long the next cycle is, without its warm-up."""
    cycle_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The peak of the next cycle as a share of this one's."""

    def __post_init__(self) -> None:
        cycles = self.cycle_steps is not None or self.cycle_growth != 1 or self.cycle_decay != 1
        if self.name != "cosine_restarts" and cycles:
            raise UserError(f"schedule.cycle_* are for name=cosine_restarts, not {self.name}. Remove them, or set it.")
        if self.name == "cosine_restarts" and (self.cycle_steps is None or self.cycle_steps <= self.warmup_steps):
            raise UserError(
                f"schedule.cycle_steps is {self.cycle_steps} with {self.warmup_steps} steps of warm-up: "
                "cosine_restarts needs a cycle longer than its warm-up."
            )


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What one named part of a model (``backbone``, ``action``...) does differently."""

    __pydantic_config__ = _STRICT

    lr: Annotated[float, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    schedule: ScheduleConfig | None = None
    """A schedule of its own; null takes the run's."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019) with optional settings per named part."""

    __pydantic_config__ = _STRICT

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """``adamw8bit`` keeps both moments in 8 bits by blocks (Dettmers et al., 2022): 2 bytes a weight instead of 8."""
    kernel: Literal["auto", "loop", "foreach", "fused"] = "auto"
    """How ``adamw`` walks over the weights. ``foreach`` holds copies of all of them for the length of a step; ``auto``
    is ``fused`` on a card and ``loop`` on the CPU, which hold none."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    groups: dict[str, GroupConfig] = field(default_factory=dict)
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights; validation and inference then use it."""

    __pydantic_config__ = _STRICT

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    start_step: NotNegative = 0
    """Until then the average is a copy of the weights."""
    power: Annotated[float, Field(gt=0)] | None = None
    """With a number p the decay grows with the steps n since the start, ``1 - (1 + n / inv_gamma)^-p``, up to
    ``decay`` (diffusers; RDT: 0.75)."""
    inv_gamma: Annotated[float, Field(gt=0)] = 1.0

    def decay_at(self, step: int) -> float:
        """What is kept of the average at update number ``step`` (0 is the first)."""
        if self.power is None:
            return 0.0 if step < self.start_step else self.decay
        grown = max(0, step - self.start_step - 1)
        return 0.0 if grown == 0 else min(self.decay, 1 - (1 + grown / self.inv_gamma) ** -self.power)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021) in the linear layers of one named part; its own weights are frozen."""

    __pydantic_config__ = _STRICT

    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Numerator of the scale ``alpha / rank``; null means ``rank``, a scale of one."""
    dropout: Fraction = 0.0
    layers: str = ".*"
    """Regular expression that a linear layer's name inside the model must match to the end."""


@dataclass(frozen=True, kw_only=True)
class FrozenFeaturesConfig:
    """Frozen parts whose outputs are computed once, kept on disk and read instead."""

    __pydantic_config__ = _STRICT

    parts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Parts that are frozen as well (``freeze``), such as ``[backbone]``."""
    path: str | None = None
    """Folder of the features, one sub-folder a part; runs may share it. null means ``<output>/features``."""
    dtype: Literal["computed", "bfloat16", "float16"] = "computed"
    """How they are stored: as computed, or rounded to two bytes a number, which changes the numbers of the run."""
    shard_mib: Annotated[float, Field(gt=0)] = 64.0
    """Size of a file in MiB: what a killed computation has to do again."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Where the weights start. Without a path they are fresh, and the banner says so."""

    __pydantic_config__ = _STRICT

    path: str | None = None
    """A file or folder, or the name of weights that ``vla-ft fetch`` brought."""
    layout: str = "auto"

    def __post_init__(self) -> None:
        if self.path is None and self.layout != "auto":
            raise UserError(f"init.layout={self.layout} describes a file, and init.path names none. Give init.path=...")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a checkpoint is written and how many are kept."""

    __pydantic_config__ = _STRICT

    every: Positive = 500
    keep_last: Positive = 3


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How often, and on how many held-out windows (evenly spaced, always the same)."""

    __pydantic_config__ = _STRICT

    every: Positive = 500
    samples: Positive = 256
    thresholds: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """For each, the share of predicted steps whose every dimension is nearer than this, normalised."""
    training_samples: NotNegative = 0
    """On how many windows of *training* episodes besides: ``training_sample/...`` beside ``validation/...`` shows what
    is learned by heart."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """TensorBoard and metrics.jsonl are always written; W&B when asked."""

    __pydantic_config__ = _STRICT

    every: Positive = 10
    updates_per_epoch: Positive | None = None
    """What is logged as an epoch; null for a pass over the training windows, which need not end with an update."""
    wandb: Annotated[Literal["off", "offline", "online"], _OFF] = "off"
    project: str = "vla_ft"
    name: str | None = None
    tags: tuple[str, ...] = ()
    artifacts: bool = False
    """Every checkpoint becomes a W&B artifact: a copy of its folder, uploaded at once or by ``wandb sync``."""

    def __post_init__(self) -> None:
        if self.artifacts and self.wandb == "off":
            raise UserError("logging.artifacts=true needs W&B, which is off. Set logging.wandb=online or offline.")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a robot executes the chunks that a policy predicts. Training does not depend on it; a run keeps it with its
    checkpoints, for whoever drives the policy."""

    __pydantic_config__ = _STRICT

    steps: Positive | None = None
    """Actions of a chunk that are executed before the next one is asked for; null means all of them."""
    temporal_ensemble: bool = False
    """Ask at every step instead, and average all predictions of that step (Zhao et al., 2023, section IV-B)."""
    ensemble_window: Positive | None = None
    """Average over the newest so many chunks; null means every chunk that reaches the step."""
    ensemble_weights: Literal["exponential", "uniform"] = "exponential"
    """``exponential``: exp(-coefficient * i), i = 0 the oldest prediction, as published; ``uniform``: all alike."""
    ensemble_coefficient: float = 0.01
    """Of the exponential weights; below zero the newest prediction weighs most."""

    def __post_init__(self) -> None:
        if self.temporal_ensemble and self.steps not in (None, 1):
            raise UserError(
                f"execution.steps={self.steps} executes several actions of one chunk, execution.temporal_ensemble=true "
                "asks for a chunk at every step. Leave one of them out."
            )
        if self.ensemble_window is not None and not self.temporal_ensemble:
            raise UserError(
                "execution.ensemble_window is of the average: set execution.temporal_ensemble=true as well."
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run depends on. It is stored resolved with every checkpoint."""

    __pydantic_config__ = _STRICT

    recipe: str
    policy: str
    data: DataConfig
    steps: Positive
    output: str
    model: Any = None
    """The policy's own dataclass."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineName = "auto"
    """How the processes share the work; ``auto`` is ``single`` for one process and ``ddp`` for several."""
    shard_group: Positive | None = None
    """``hsdp``: how many neighbouring processes hold one copy of the model together; null is one machine's."""
    precision: Precision = "fp32"
    """``bf16`` computes in bfloat16 over float32 weights; ``bf16_stochastic`` and ``bf16_kahan`` hold the trained
    weights in bfloat16 too, and round updates at random without bias, or carry what rounding lost along (2 bytes)."""
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    """How weights that are not trained are held."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in host memory: the optimizer's state, or weights, gradients and state."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """``torch.compile`` block by block."""
    lora: dict[str, LoraConfig] = field(default_factory=dict)
    """Low-rank adapters by named part."""
    ema: EmaConfig | None = None
    freeze: tuple[str, ...] = ()
    """Named parts that get no gradient and no optimizer state."""
    frozen_features: FrozenFeaturesConfig | None = None
    """Which frozen parts are run once over the data instead of in every step; null for none."""
    init: InitConfig = field(default_factory=InitConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Literal["auto"] | Positive = "auto"
    """Processes on this machine: ``auto`` is one per visible card, or one on the CPU."""
    deterministic: bool = False
    """Deterministic kernels. On the CPU a run is bit-exact without it; on a GPU only with it."""
    resume: str = "auto"
    """``auto`` continues the run in ``output`` when there is one; ``never`` refuses to; or a checkpoint's path."""
    plan: PlanAnswer = "refuse"
    """Before weights are loaded on a card: refuse what the memory forecast says cannot fit, warn, or do not ask."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, nested as in a recipe."""
        return dataclasses.asdict(self)


def _published_settings(merged: Any) -> dict[str, Any] | None:
    """The ``model`` settings that the weights to start from come with, or None."""
    policy, path = (OmegaConf.select(merged, key) for key in ("policy", "init.path"))
    if not isinstance(policy, str) or not isinstance(path, str):
        return None
    return published_settings(policy, path, OmegaConf.select(merged, "init.layout") or "auto")


def recipe_names() -> list[str]:
    """Names that ``recipe=`` takes; a path to a YAML file works as well."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_run_config(arguments: Sequence[str]) -> RunConfig:
    """Build a run's configuration from ``recipe=NAME key=value ...``. Raises UserError on anything unknown or wrong.

    Where ``init.path`` is a folder that says how its network is built (LeRobot's), that goes before the recipe's
    ``model`` section, and the words after both.
    """
    pairs = dict(_split(argument) for argument in arguments)
    recipe = pairs.pop("recipe", DEFAULT_RECIPE)
    try:
        merged = OmegaConf.merge(_read_recipe(recipe), _dotlist(pairs))
        if settings := _published_settings(merged):
            merged = OmegaConf.merge(_read_recipe(recipe), {"model": settings}, _dotlist(pairs))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"The overrides do not fit recipe {recipe}: {error}") from None
    assert isinstance(merged, DictConfig)
    values = _to_plain(merged)
    name = Path(recipe).stem
    values["recipe"] = name
    values.setdefault("output", str(Path(os.environ.get("VLA_FT_RUNS", "runs")) / name))
    return run_config_from_dict(values)


def recipe_value(recipe: str | None, key: str) -> Any:
    """What a recipe says for a dotted key; None when it says nothing. Raises UserError for an unknown recipe."""
    return OmegaConf.select(_read_recipe(recipe or DEFAULT_RECIPE), key)


def read_recipe(recipe: str) -> dict[str, Any]:
    """A recipe's values as they are written, by name or path. Raises UserError."""
    return _to_plain(_read_recipe(recipe))


def run_config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Check plain nested values, such as those stored with a checkpoint. Raises UserError."""
    values = dict(values)
    model = values.pop("model", None) or {}
    config = check(RunConfig, values, "the configuration")
    policy = load_policy(config.policy)
    return dataclasses.replace(config, model=check(policy.Config, model, f"policy '{config.policy}'", prefix="model."))


def check(kind: type[T], values: dict[str, Any], where: str, prefix: str = "") -> T:
    """Fill the dataclass ``kind`` from plain values. Raises UserError naming every wrong key and what was seen."""
    if getattr(kind, "__pydantic_config__", {}).get("extra") != "forbid":
        raise TypeError(f"{kind.__name__} would swallow mistyped keys: forbid extra ones in its __pydantic_config__")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [_explain(kind, entry, prefix) for entry in error.errors()]
        raise UserError("\n".join(dict.fromkeys(lines)) + f"\n(in {where})") from None


def from_arguments(kind: type[T], arguments: Sequence[str], where: str) -> T:
    """Fill a command's own dataclass from ``key=value`` words."""
    return check(kind, _to_plain(_dotlist(dict(_split(argument) for argument in arguments))), where)


def _split(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise UserError(f"Cannot read '{argument}': expected key=value, such as steps=1000 or data.path=/data/demos.")
    return key, value


def _read_recipe(recipe: str) -> DictConfig:
    path = RECIPES / f"{recipe}.yaml"
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise UserError(
                f"No recipe file at {path}. Give a path that exists, or one of: {', '.join(recipe_names())}."
            )
    elif not path.is_file():
        raise unknown("recipe", recipe, recipe_names())
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # the YAML library's errors have no common base that OmegaConf exports
        raise UserError(f"Recipe {path} is not valid YAML: {error}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"Recipe {path} holds a {type(loaded).__name__}, expected a mapping of keys to values.")
    return loaded


def _dotlist(pairs: dict[str, str]) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([f"{key}={value}" for key, value in pairs.items()])
    except Exception as error:  # as above
        raise UserError(
            f"Cannot read the overrides {' '.join(f'{k}={v}' for k, v in pairs.items())}: {error}"
        ) from None


def _to_plain(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The configuration cannot be resolved: {error}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _explain(kind: type, entry: Any, prefix: str) -> str:
    """One sentence for one of pydantic's errors."""
    path = [str(part) for part in entry["loc"] if part not in ("<name>", "<own>")]
    key = (prefix + ".".join(path)).rstrip(".")
    if entry["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [prefix + name for name in _keys(kind)]
        hint = nearest(key, known)
        if not hint and len(path) > 1:
            siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.3)
            hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"Unknown key '{key}'.{hint}"
    if entry["type"] in ("missing", "missing_argument"):
        return f"Key '{key}' is missing: give {key}=... on the command line or in the recipe."
    message = entry["msg"][0].lower() + entry["msg"][1:]
    expected = entry.get("ctx", {}).get("expected")
    hint = (
        nearest(str(entry["input"]), str(expected).replace("'", "").replace(" or ", ", ").split(", "))
        if expected
        else ""
    )
    return f"Key '{key}' is {entry['input']!r}: {message}.{hint}"


def _keys(kind: Any) -> list[str]:
    """Dotted names of a dataclass's fields, nested ones included."""
    names = []
    hints = get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        extras = getattr(hints[item.name], "__metadata__", ())
        names.append(next((alias for extra in extras if (alias := getattr(extra, "alias", None))), item.name))
        default = item.default_factory if item.default_factory is not dataclasses.MISSING else None
        nested = default if dataclasses.is_dataclass(default) else _NESTED.get(item.name)
        if nested is not None:
            names += [f"{item.name}.{name}" for name in _keys(nested)]
    return names


_NESTED = {
    "data": DataConfig,
    "ema": EmaConfig,
    "frozen_features": FrozenFeaturesConfig,
    "augmentation": AugmentationConfig,
}
